# SPDX-License-Identifier: Apache-2.0
"""Sequences of many lengths, one after another in one array, and the arithmetic of their offsets."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray


def to_offsets(counts: NDArray[np.integer] | NDArray[np.bool_]) -> NDArray[np.int64]:
    """Where each run starts, and the total: `[0, c0, c0 + c1, ...]`.

    Args:
        counts: (N,) integer, all >= 0.

    Returns:
        (N + 1,) int64.
    """
    out = np.zeros(len(counts) + 1, np.int64)
    counts.cumsum(out=out[1:])
    return out


def counting(
    starts: NDArray[np.int64] | int,
    counts: NDArray[np.int64],
    step: int = 1,
    dtype: DTypeLike = np.int64,
) -> NDArray[Any]:
    """Runs `start, start + step, start + 2 * step, ...`, one after another.

    Args:
        starts: (N,) int64, first value of each run, or one for all.
        counts: (N,) int64, how long each run is, >= 0.
        step: the difference between neighbours in a run.
        dtype: of the result; the caller knows that every value fits.

    Returns:
        (counts.sum(),) dtype.
    """
    ends = counts.cumsum()
    total = int(ends[-1]) if len(ends) else 0
    shift = (starts - step * (ends - counts)).astype(dtype, copy=False)  # (N,)
    runs = shift.repeat(counts)
    runs += np.arange(0, step * total, step, dtype=dtype)
    return runs


class Ragged(NamedTuple):
    """S sequences: sequence s is `values[offsets[s]:offsets[s + 1]]`. A pair, as `Packer.pack` takes histories."""

    values: NDArray[Any]  # (N,)
    offsets: NDArray[np.integer]  # (S + 1,) from 0 to N

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(S,)"""
        return np.diff(self.offsets).astype(np.int64, copy=False)

    def slice(self, first: int, last: int) -> Ragged:
        """Sequences `first` to `last - 1`, or to the end where there are fewer; views of the values."""
        cut = self.offsets[first : last + 1]
        return Ragged(self.values[cut[0] : cut[-1]], cut - cut[0])

    def take(self, places: NDArray[np.integer]) -> Ragged:
        """The sequences at `places`, in this order; copies."""
        lengths = self.lengths[places]
        return Ragged(self.values[counting(self.offsets[:-1][places], lengths)], to_offsets(lengths))

    def newest(self, counts: NDArray[np.int64]) -> Ragged:
        """The last `counts` (S,) values of each sequence; none has fewer."""
        return Ragged(self.values[counting(self.offsets[1:] - counts, counts)], to_offsets(counts))

    def owners(self) -> NDArray[np.int64]:
        """(N,) which sequence each value is of."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.lengths)
