# SPDX-License-Identifier: Apache-2.0
"""Training, validation and test: by time over all interactions, or the last ones of each user, or as they come."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "val", "test")
SHARES = (48.0, 1.0, 1.0)  # the paper's
LEAST = 3  # interactions of a user of which one is left out for val and one for test


def split_by_time(
    times: NDArray[np.int64] | NDArray[np.float64],
    offsets: NDArray[np.int64],
    shares: tuple[float, float, float] = SHARES,
) -> dict[str, NDArray[np.int32]]:
    """Cuts all interactions at two moments, the same for every user.

    The moments are the quantiles of all times (linear interpolation, NumPy's default), and what happens at a
    moment belongs to the earlier split: with 48:1:1 this gives the paper's splits of both MovieLens sets exactly.

    Args:
        times: (N,) users one after another, never decreasing inside a user.
        offsets: (U + 1,) user u is `times[offsets[u]:offsets[u + 1]]`; no user is empty.
        shares: of train, val and test; only their ratios count.

    Returns:
        Split name -> (U, 2) int32, the first and the last position of the user in that split; -1, -1 for none.

    Raises:
        ValueError: shares that are not positive for train or are negative.
    """
    check_shares(shares)
    relative = np.asarray(shares, np.float64) / max(shares)
    ends = np.cumsum(relative) / relative.sum()
    return split_by_number(np.searchsorted(np.quantile(times, ends[:2]), times), offsets)


def leave_one_out(offsets: NDArray[np.int64]) -> dict[str, NDArray[np.int32]]:
    """Each user's last interaction is test, the one before it val, the others are train.

    Users with fewer than `LEAST` interactions are train.

    Args:
        offsets: (U + 1,) of users one after another, each user's oldest first; no user is empty.

    Returns:
        As `split_by_time`.
    """
    last = offsets[1:][np.diff(offsets) >= LEAST] - 1
    number = np.zeros(offsets[-1], np.int8)
    number[last], number[last - 1] = 2, 1
    return split_by_number(number, offsets)


def split_by_number(number: NDArray[Any], offsets: NDArray[np.int64]) -> dict[str, NDArray[np.int32]]:
    """Cuts each user's interactions where the number of their split rises.

    Args:
        number: (N,) the place in `SPLITS` of every interaction; it never falls along a user.
        offsets: (U + 1,) as of `split_by_time`.

    Returns:
        As `split_by_time`.
    """
    splits = {}
    begin = np.zeros(len(offsets) - 1, np.int64)
    for split, name in enumerate(SPLITS):
        count = np.add.reduceat(number == split, offsets[:-1], dtype=np.int64)
        positions = np.stack([begin, begin + count - 1], axis=1)
        splits[name] = np.where(count[:, None] > 0, positions, -1).astype(np.int32)
        begin += count
    return splits


def check_shares(shares: tuple[float, float, float]) -> None:
    """Raises ValueError for anything else than three finite numbers, the first above 0 and the others not below."""
    numbers = np.asarray(shares, np.float64)
    if numbers.shape != (3,) or not (np.isfinite(numbers).all() and numbers[0] > 0 and (numbers >= 0).all()):
        raise ValueError(
            f"shares: expected three finite numbers, a positive one for train and none below 0, got {shares}"
        )
