# SPDX-License-Identifier: Apache-2.0
"""Training by user: runs of consecutive targets of one user, whose prompts are read together."""

from __future__ import annotations

from copy import copy
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._check import check_count
from .._options import TARGETS_PER_PASS
from ..data import Dataset
from ..data.dataset import at_least
from ..layout import Packer, Policy
from ..layout.histories import how_many
from ..ragged import Ragged, counting, to_offsets

_SOME = 1024  # targets that say how much is shared
_GOLDEN = 0.6180339887498949


class Passes(NamedTuple):
    """P runs of targets, for `MicroBatches`: each is read in one pass, in which its prompts share rows."""

    sequences: tuple[NDArray[np.int32], NDArray[np.int64]]  # of U users: flat item ids (N,), offsets (U + 1,)
    user: NDArray[np.int64]  # (P,)
    first: NDArray[np.int64]  # (P,) places in the user's sequence: of the first target
    last: NDArray[np.int64]  # (P,) and of the last one

    @property
    def counts(self) -> NDArray[np.int64]:
        """(P,) the targets of each."""
        return self.last - self.first + 1

    def take(self, places: NDArray[np.int64]) -> Passes:
        """The passes at `places`, with the sequences of their users alone."""
        flat, offsets = Ragged(*self.sequences).take(self.user[places])
        sequences = flat, offsets.astype(np.int64, copy=False)
        return Passes(sequences, np.arange(len(places)), self.first[places], self.last[places])

    def held(self, packer: Packer) -> NDArray[np.int32]:
        """(N,) item ids of the prompts and targets of each."""
        kept = how_many(self.first, packer.max_items, packer.step)  # by the first target's prompt, which has the oldest
        flat, offsets = self.sequences
        return flat[counting(offsets[:-1][self.user] + self.first - kept, kept + self.counts)]

    def some(self, limit: int) -> Passes:
        """Passes evenly spread over all, the last cut off, so that they have `limit` targets; all if there are fewer.

        Raises:
            TypeError, ValueError: a limit below 1.
        """
        check_count("limit", limit, minimum=1)
        counts = self.counts
        if limit >= counts.sum():
            return self
        # Places i with the smallest fractions of i * golden ratio are evenly spread, however many are taken.
        spread = np.argsort(np.arange(len(counts)) * _GOLDEN % 1)
        before = to_offsets(counts[spread])
        taken = int(np.searchsorted(before, limit))
        last = self.last.copy()
        last[spread[taken - 1]] -= before[taken] - limit
        places = np.sort(spread[:taken])
        return Passes(self.sequences, self.user[places], self.first[places], last[places])


def passes(dataset: Dataset, split: str, targets_per_pass: int = TARGETS_PER_PASS, min_position: int = 3) -> Passes:
    """The targets of a split, user by user, in as few passes as there can be, a user's of nearly equal size.

    Args:
        dataset: its sequences, and the places of the split in them.
        split: a name of `dataset.splits`.
        targets_per_pass: at most so many targets in a pass.
        min_position: targets at earlier positions are skipped, as by `Dataset.split`; at least 1.

    Raises:
        TypeError, ValueError: no such split, or a number below 1.
    """
    check_count("targets_per_pass", targets_per_pass, minimum=1)
    if split not in dataset.splits:
        raise ValueError(f"split: expected one of {', '.join(dataset.splits)}, got {split!r}")
    first, last = dataset.splits[split].astype(np.int64).T  # (U,)
    first = np.maximum(first, min(at_least(min_position, 1, "min_position"), len(dataset.items)))
    counts = np.maximum(last - first + 1, 0)  # (U,); -1, -1 is none
    parts = -(-counts // targets_per_pass)
    user = np.repeat(np.arange(len(parts)), parts)  # (P,)
    nth = counting(0, parts)
    begin = first[user] + nth * counts[user] // parts[user]
    end = first[user] + (nth + 1) * counts[user] // parts[user] - 1
    return Passes((dataset.items, to_offsets(np.diff(dataset.offsets))), user, begin, end)


def share_of_rows(made: Passes, packer: Packer, policy: Policy) -> float:
    """How many rows passes read, of those of a prompt a target: over some passes, the prefix left out."""
    some = made.some(_SOME)
    some = some.take(np.arange(len(some.user)))
    packer, prefix = copy(packer), len(packer.prompt.prefix)
    packer.policy, packer.share = policy, True
    read = packer.count_rows(some.sequences, some.first, some.last).sum() - prefix * len(some.user)
    packer.share = False
    alone = packer.count_rows(some.sequences, some.first, some.last).sum() - prefix * some.counts.sum()
    return float(read / alone)
