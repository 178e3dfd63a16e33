# SPDX-License-Identifier: Apache-2.0
"""`Baseline`: a `Ranker` by a score of every title."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..data import Dataset
from ..layout.catalogue import Catalogue
from ..layout.histories import Histories, checked, flatten
from ..ragged import Ragged, counting, to_offsets
from ..recommend.ranker import MISS, Ranked

Scores = NDArray[np.floating[Any]]


class Baseline(ABC):
    """Titles in the order of a score, those with the same tokens being one (`Catalogue.answers`).

    With `exclude_seen`, titles are left out of which a history has all items, as by `Recommender.recommend`; so the
    histories should be whole. In `rank`, equal scores all get the last of their ranks, and a title that is left out
    none (-1).

    Attributes:
        catalogue: what can be recommended, I items of A titles.
        num_titles: A.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self.num_titles = int(catalogue.answers.max()) + 1
        self._order = np.argsort(catalogue.answers, kind="stable")  # (I,) the items of a title side by side
        self._begin = np.searchsorted(catalogue.answers[self._order], np.arange(self.num_titles))  # (A,)

    @abstractmethod
    def _scores(self, histories: Ragged) -> Scores:
        """(B, A), a greater one is better, of B histories of titles by number, oldest first, none empty."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Of all that the answers depend on, JSON values."""

    def scores(self, histories: Histories) -> Scores:
        """(B, I) in the order of the catalogue, a greater one is better; items that share a title have one score.

        Raises:
            TypeError, ValueError: malformed histories, or an unknown item.
        """
        return self._scores(self._titles(*flatten(histories)))[:, self.catalogue.answers]

    def recommend(self, histories: Histories, k: int = 20, *, exclude_seen: bool = False) -> Ranked:
        """The k best titles of each history; of those that items share the first, with `exclude_seen` the first unseen.

        Raises:
            TypeError, ValueError: malformed histories, or an unknown item.
        """
        flat, offsets = flatten(histories)
        first, left = self._left(flat, offsets, exclude_seen)
        score = np.where(left, self._scores(self._titles(flat, offsets)), -np.inf)
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
        score = self._scores(self._titles(flat, offsets))
        rank = (left & (score >= score[user, answer][:, None])).sum(1)
        return np.where(left[user, answer], rank, MISS)

    def _titles(self, flat: NDArray[np.int64], offsets: NDArray[np.int64]) -> Ragged:
        return Ragged(self.catalogue.answers[self.catalogue.index(flat)], offsets)

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


def train_titles(dataset: Dataset, catalogue: Catalogue) -> Ragged:
    """Each user's titles by number, up to their last interaction of the train split, oldest first; some may have none.

    Raises:
        ValueError: no train split, or an item that is not in the catalogue.
    """
    if "train" not in dataset.splits:
        raise ValueError(f"dataset: expected a train split, got {sorted(dataset.splits)}")
    counts = dataset.splits["train"][:, 1].astype(np.int64) + 1  # (U,) 0 where the last position is -1
    items = dataset.items[counting(dataset.offsets[:-1], counts)]
    return Ragged(catalogue.answers[catalogue.index(items)], to_offsets(counts))
