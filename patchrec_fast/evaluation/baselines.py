# SPDX-License-Identifier: Apache-2.0
"""What a recommender has to beat: popularity and chance, as `Ranker`s."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..data import Dataset
from ..layout.catalogue import Catalogue
from ..layout.histories import Histories, flatten
from ..models import fingerprint
from ..ragged import counting
from ..recommend.ranker import Ranked
from .metrics import MISS
from .samples import checked


class Baseline(ABC):
    """Titles in the order of a score, those with the same tokens being one (`Catalogue.answers`).

    With `exclude_seen`, titles are left out of which a history has all items, as by `Recommender.recommend`; so the
    histories should be whole. In `rank`, equal scores all get the last of their ranks, and a title that is left out
    none (-1).

    Attributes:
        catalogue: what can be recommended, I items of A titles.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self._order = np.argsort(catalogue.answers, kind="stable")  # (I,) the items of a title side by side
        self._begin = np.searchsorted(catalogue.answers[self._order], np.arange(catalogue.answers.max() + 1))  # (A,)

    @abstractmethod
    def scores(self, flat: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.float64]:
        """(B, A), a greater one is better, of the histories flat (N,) and offsets (B + 1,)."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Of all that the answers depend on, JSON values."""

    def recommend(self, histories: Histories, k: int = 20, *, exclude_seen: bool = False) -> Ranked:
        """The k best titles of each history; of those that items share the first, with `exclude_seen` the first unseen.

        Raises:
            TypeError, ValueError: malformed histories, or an unknown item.
        """
        flat, offsets = flatten(histories)
        first, left = self._left(flat, offsets, exclude_seen)
        score = np.where(left, self.scores(flat, offsets), -np.inf)
        best = np.argsort(-score, axis=1, kind="stable")[:, :k]
        ids = np.append(self.catalogue.item_ids, -1)  # the last where nothing is left of a title
        items = ids[np.take_along_axis(first, best, axis=1)]
        return Ranked(np.pad(items, ((0, 0), (0, k - items.shape[1])), constant_values=-1))

    def rank(self, histories: Histories, targets: ArrayLike, *, exclude_seen: bool = False) -> NDArray[np.int64]:
        """(B,) the rank of each target's title, from 1.

        Raises:
            TypeError, ValueError: as `recommend`; another number of targets than of histories.
        """
        flat, offsets, wanted = checked(histories, targets)
        answer, user = self.catalogue.answers[self.catalogue.index(wanted)], np.arange(len(wanted))
        _, left = self._left(flat, offsets, exclude_seen)
        score = self.scores(flat, offsets)
        rank = (left & (score >= score[user, answer][:, None])).sum(1)
        return np.where(left[user, answer], rank, MISS)

    def _left(
        self, flat: NDArray[np.int64], offsets: NDArray[np.int64], exclude_seen: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(B, A): the first item of each title, by position, that may be recommended, and whether there is one."""
        count = len(self.catalogue)
        place = np.tile(np.arange(count), (len(offsets) - 1, 1))  # (B, I)
        seen = self.catalogue.index(flat)
        if exclude_seen:
            place[np.repeat(np.arange(len(place)), np.diff(offsets)), seen] = count
        first = np.minimum.reduceat(place[:, self._order], self._begin, axis=1)
        return first, first < count


class Popularity(Baseline):
    """By the interactions of a title up to each user's last one in the train split."""

    def __init__(self, dataset: Dataset, catalogue: Catalogue) -> None:
        """Counts.

        Raises:
            ValueError: no train split, or an item that is not in the catalogue.
        """
        super().__init__(catalogue)
        if "train" not in dataset.splits:
            raise ValueError(f"dataset: expected a train split, got {sorted(dataset.splits)}")
        counts = dataset.splits["train"][:, 1].astype(np.int64) + 1  # (U,) 0 where the last position is -1
        items = catalogue.index(dataset.items[counting(dataset.offsets[:-1], counts)])
        self._count = np.bincount(catalogue.answers[items], minlength=len(self._begin)).astype(np.float64)  # (A,)

    def scores(self, flat: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.tile(self._count, (len(offsets) - 1, 1))

    def fingerprint(self) -> dict[str, Any]:
        return {"ranker": "popularity", "counts": fingerprint.plain(self._count)}


class Chance(Baseline):
    """Each history's own order, drawn from the seed and the history: any call gives the same."""

    def __init__(self, catalogue: Catalogue, seed: int = 0) -> None:
        super().__init__(catalogue)
        self.seed = seed

    def scores(self, flat: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.float64]:
        digests = (hashlib.sha256(history.tobytes()).digest() for history in np.split(flat, offsets[1:-1]))
        draws = (np.random.default_rng([self.seed, int.from_bytes(digest)]) for digest in digests)
        return np.stack([rng.random(len(self._begin)) for rng in draws])

    def fingerprint(self) -> dict[str, Any]:
        return {"ranker": "chance", "seed": self.seed}
