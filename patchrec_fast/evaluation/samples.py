# SPDX-License-Identifier: Apache-2.0
"""Which samples belong to one user, and whether two runs had the same samples."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from ..ragged import counting, to_offsets


def users_of(flat: NDArray[np.int64], offsets: NDArray[np.int64], targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers the users of samples that stand in the order of `Dataset.split`.

    A sample is of the user before where its history is the one before and that one's target, as far as both reach
    back. Samples in any other order count as a user each.

    Args:
        flat, offsets: histories, (N,) and (S + 1,).
        targets: (S,).

    Returns:
        (S,) int64, from 0, never falling.
    """
    lengths = np.diff(offsets)
    before, after = lengths[:-1], lengths[1:]
    continues = (flat[offsets[2:] - 1] == targets[:-1]) & (after <= before + 1)  # (S - 1,)
    common = np.where(continues, after - 1, 0)  # items that both have
    earlier = flat[counting(offsets[1:-1] - common, common)]
    later = flat[counting(offsets[2:] - 1 - common, common)]
    sample = np.repeat(np.arange(len(common)), common)
    continues[sample[earlier != later]] = False
    return to_offsets(~continues)


def identity(flat: NDArray[np.int64], offsets: NDArray[np.int64], targets: NDArray[np.int64]) -> str:
    """A digest of every sample's target and newest item, which no length of the histories changes."""
    return hashlib.sha256(np.stack([targets, flat[offsets[1:] - 1]]).tobytes()).hexdigest()
