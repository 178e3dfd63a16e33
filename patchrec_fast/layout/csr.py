# SPDX-License-Identifier: Apache-2.0
"""The two primitives from which every layout is built: offsets of runs, and runs counted out."""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


def offsets(counts: NDArray[np.integer]) -> NDArray[np.int64]:
    """Where each run starts, and the total: `[0, c0, c0 + c1, ...]`.

    Args:
        counts: (N,) integer, all >= 0.

    Returns:
        (N + 1,) int64.
    """
    out = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=out[1:])
    return out


def counting(
    starts: NDArray[np.int64],
    counts: NDArray[np.int64],
    step: int = 1,
    dtype: DTypeLike = np.int64,
) -> NDArray[Any]:
    """Runs `start, start + step, start + 2 * step, ...`, one after another.

    Args:
        starts: (N,) int64, first value of each run.
        counts: (N,) int64, how long each run is, >= 0.
        step: the difference between neighbours in a run.
        dtype: of the result; the caller knows that every value fits.

    Returns:
        (counts.sum(),) dtype.
    """
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    shift = (starts - step * (ends - counts)).astype(dtype, copy=False)  # (N,)
    return np.repeat(shift, counts) + np.arange(0, step * total, step, dtype=dtype)
