# SPDX-License-Identifier: Apache-2.0
"""What a policy sees of the histories of one call."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..ragged import counting


@dataclass(frozen=True, eq=False)
class History:
    """B histories, one after another, each with its items oldest first: N items in all.

    Several may be beginnings of one user's sequence (`Packer.pack_targets`). An item that is in several of them has
    the same `positions` in each, and `draw` gives it the same number in each.

    Attributes:
        lengths: (B,) int64, the items of each history, all >= 1.
        positions: (N,) int64, which item of the call's sequences each is, below `count`; 0 to N - 1 where every
            history is a sequence of its own.
        count: how many items the call's sequences have.
        times: (N,) float64 seconds, or None where they are not known; and so the next three.
        ratings: (N,) float64.
        title_lengths: (N,) int64 tokens.
        marks: (N,) bool, for items that something else chose.
    """

    lengths: NDArray[np.int64]
    positions: NDArray[np.int64]
    count: int
    times: NDArray[np.float64] | None = None
    ratings: NDArray[np.float64] | None = None
    title_lengths: NDArray[np.int64] | None = None
    marks: NDArray[np.bool_] | None = None

    @classmethod
    def of(cls, lengths: NDArray[np.int64]) -> History:
        """Sequences of these lengths, whole."""
        count = int(lengths.sum())
        return cls(lengths, np.arange(count), count)

    def __len__(self) -> int:
        """The number of items, N."""
        return len(self.positions)

    def older(self) -> NDArray[np.int64]:
        """(N,): how many older items the same history has; 0 for the oldest."""
        return counting(0, self.lengths)

    def newer(self) -> NDArray[np.int64]:
        """(N,): how many newer items the same history has; 0 for the newest."""
        return counting(self.lengths - 1, self.lengths, step=-1)

    def draw(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """(N,) uniform numbers in [0, 1), one for each item of the call's sequences, in order."""
        return rng.random(self.count)[self.positions]

    def slice(self, first: int, last: int) -> History:
        """Histories `first` to `last - 1`."""
        a, b = int(self.lengths[:first].sum()), int(self.lengths[:last].sum())
        rest = {
            name: None if (values := getattr(self, name)) is None else values[a:b]
            for name in ("times", "ratings", "title_lengths", "marks")
        }
        return History(self.lengths[first:last], self.positions[a:b], self.count, **rest)
