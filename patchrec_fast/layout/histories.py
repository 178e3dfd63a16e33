# SPDX-License-Identifier: Apache-2.0
"""Histories as the caller writes them -> one flat array and its offsets."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .csr import counting
from .csr import offsets as csr_offsets

Histories = Sequence[Sequence[int] | NDArray[np.integer]] | tuple[ArrayLike, ArrayLike]
"""A list with one sequence of item ids a user, or a *tuple* (flat ids (N,), offsets (B + 1,))."""


def integers(name: str, values: Any) -> NDArray[np.int64]:
    """`values` as a 1-D int64 array.

    Raises:
        TypeError: they are not integers; the message names `name`.
        ValueError: not one dimension.
    """
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected one dimension, got shape {array.shape}")
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {array.dtype}")
    return array.astype(np.int64, copy=False)


def flatten(histories: Histories) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Normalise and check.

    Returns:
        flat (N,) int64 and offsets (B + 1,) int64; no user is empty.

    Raises:
        TypeError: not a list or a pair, or ids that are not integers.
        ValueError: no users, a user without items (named by place), or malformed offsets.
    """
    flat, offsets = _pair(histories) if isinstance(histories, tuple) else _list(histories)
    lengths = np.diff(offsets)
    if not len(lengths):
        raise ValueError("histories: got no users, expected at least one")
    if not lengths.all():
        raise ValueError(
            f"histories: the user at place {np.flatnonzero(lengths == 0)[0]} has no items, expected at least one"
        )
    return flat, offsets


def _pair(histories: tuple[ArrayLike, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if len(histories) != 2 or not all(hasattr(part, "dtype") for part in histories):
        parts = ", ".join(type(part).__name__ for part in histories)
        raise TypeError(
            f"histories: a tuple is two arrays (flat, offsets), got ({parts}); "
            "put the histories of several users into a list"
        )
    flat = integers("histories (flat)", histories[0])
    offsets = integers("histories (offsets)", histories[1])
    rises = len(offsets) and offsets[0] == 0 and (np.diff(offsets) >= 0).all()
    if not rises or offsets[-1] != len(flat):
        raise ValueError(f"histories (offsets): expected to rise from 0 to {len(flat)}, got {offsets}")
    return flat, offsets


def _list(
    histories: Sequence[Sequence[int] | NDArray[np.integer]],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    try:
        arrays = [np.asarray(history) for history in histories]
        offsets = csr_offsets(np.array([len(array) for array in arrays], np.int64))
        flat = np.concatenate([np.empty(0, np.int64), *(array for array in arrays if len(array))])
    except (TypeError, ValueError) as error:
        raise TypeError(
            "histories: expected a list with one sequence of item ids a user, or a tuple "
            f"(flat, offsets) of arrays ({error})"
        ) from error
    return integers("histories", flat), offsets


def newest(
    flat: NDArray[np.int64], offsets: NDArray[np.int64], limit: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each user's last `limit` items (None: all), and how many those are: (M,) and (B,) int64."""
    lengths = np.diff(offsets)
    if limit is None or lengths.max() <= limit:
        return flat, lengths
    kept = np.minimum(lengths, limit)
    return flat[counting(offsets[1:] - kept, kept)], kept
