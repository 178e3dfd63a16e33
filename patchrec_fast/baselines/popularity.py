# SPDX-License-Identifier: Apache-2.0
"""What a recommender has to beat: popularity and chance."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from ..data import Dataset
from ..layout.catalogue import Catalogue
from ..models import fingerprint
from ..ragged import Ragged
from .ranker import Baseline, Scores, train_titles


class Popularity(Baseline):
    """By the interactions of a title up to each user's last one in the train split."""

    def __init__(self, dataset: Dataset, catalogue: Catalogue) -> None:
        """Counts.

        Raises:
            ValueError: no train split, or an item that is not in the catalogue.
        """
        super().__init__(catalogue)
        titles = train_titles(dataset, catalogue).values
        self._count = np.bincount(titles, minlength=self.num_titles).astype(np.float64)  # (A,)

    def _scores(self, histories: Ragged) -> Scores:
        return np.tile(self._count, (len(histories.lengths), 1))

    def fingerprint(self) -> dict[str, Any]:
        return {"ranker": "popularity", "counts": fingerprint.plain(self._count)}


class Chance(Baseline):
    """Each history's own order, drawn from the seed and the history: any call gives the same."""

    def __init__(self, catalogue: Catalogue, seed: int = 0) -> None:
        super().__init__(catalogue)
        self.seed = seed

    def _scores(self, histories: Ragged) -> Scores:
        parts = np.split(histories.values, histories.offsets[1:-1])
        digests = (hashlib.sha256(history.tobytes()).digest() for history in parts)
        draws = (np.random.default_rng([self.seed, int.from_bytes(digest)]) for digest in digests)
        return np.stack([rng.random(self.num_titles) for rng in draws])

    def fingerprint(self) -> dict[str, Any]:
        return {"ranker": "chance", "seed": self.seed}
