# SPDX-License-Identifier: Apache-2.0
"""Training by user: runs of consecutive targets of one user, whose prompts are read together."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._check import check_count
from ..data import Dataset
from ..ragged import Ragged, counting, to_offsets

TARGETS_PER_PASS = 64


class Passes(NamedTuple):
    """P runs of targets, for `MicroBatches`: each is read in one pass, in which its prompts share rows."""

    sequences: tuple[NDArray[np.int32], NDArray[np.int64]]  # of U users: flat item ids (N,), offsets (U + 1,)
    user: NDArray[np.int64]  # (P,)
    first: NDArray[np.int64]  # (P,) places in the user's sequence: of the first target
    last: NDArray[np.int64]  # (P,) and of the last one

    @property
    def targets(self) -> int:
        """How many there are."""
        return int((self.last - self.first + 1).sum())

    def take(self, places: NDArray[np.int64]) -> Passes:
        """The passes at `places`, with the sequences of their users alone."""
        flat, offsets = Ragged(*self.sequences).take(self.user[places])
        sequences = flat, offsets.astype(np.int64, copy=False)
        return Passes(sequences, np.arange(len(places)), self.first[places], self.last[places])


def passes(dataset: Dataset, split: str, targets_per_pass: int = TARGETS_PER_PASS) -> Passes:
    """The targets of a split, user by user, in as few passes as there can be, a user's of nearly equal size.

    Args:
        dataset: its sequences, and the places of the split in them. A user's first item is no target: nothing is before
            it.
        split: a name of `dataset.splits`.
        targets_per_pass: at most so many targets in a pass.

    Raises:
        TypeError, ValueError: no such split, no target in it, or a number below 1.
    """
    check_count("targets_per_pass", targets_per_pass, minimum=1)
    if split not in dataset.splits:
        raise ValueError(f"split: expected one of {', '.join(dataset.splits)}, got {split!r}")
    first, last = dataset.splits[split].astype(np.int64).T  # (U,)
    first = np.maximum(first, 1)
    counts = np.maximum(last - first + 1, 0)  # (U,); -1, -1 is none
    parts = -(-counts // targets_per_pass)
    user = np.repeat(np.arange(len(parts)), parts)  # (P,)
    if not len(user):
        raise ValueError(f"split: {split!r} has no targets")
    nth = counting(0, parts)
    begin = first[user] + nth * counts[user] // parts[user]
    end = first[user] + (nth + 1) * counts[user] // parts[user] - 1
    return Passes((dataset.items, to_offsets(np.diff(dataset.offsets))), user, begin, end)
