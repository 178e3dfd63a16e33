# SPDX-License-Identifier: Apache-2.0
"""Histories as the caller writes them -> one flat array and its offsets."""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..ragged import Ragged, to_offsets

_INT64_MAX = 2**63 - 1

Histories = Sequence[Sequence[int] | NDArray[np.integer]] | tuple[ArrayLike, ArrayLike]
"""A list with one sequence of item ids a user, or a *tuple* (flat ids (N,), offsets (B + 1,))."""


def integers(name: str, values: Any) -> NDArray[np.int64]:
    """Ids or offsets as a 1-D int64 array: of an array or tensor of any integer dtype, or a sequence of integers.

    Raises:
        TypeError: they are not integers, or some are bools; the message names `name`.
        ValueError: not one dimension, a negative number (it would mean "none"), or one above 2**63 - 1.
    """
    array = _array(name, values)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected one dimension, got shape {array.shape}")
    return _no_negative(name, _int64(name, values, array))


def _no_negative(name: str, array: NDArray[np.int64]) -> NDArray[np.int64]:
    if array.size and (least := array.min()) < 0:
        raise ValueError(f"{name}: expected no negative number, got {least}")
    return array


def _array(name: str, values: Any) -> NDArray[Any]:
    """What NumPy makes of values, a tensor's too."""
    if not isinstance(values, torch.Tensor):
        return np.asarray(values)
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"{name}: expected integers, got {values.dtype}")
    return values.detach().cpu().numpy()


def _int64(name: str, values: Any, array: NDArray[Any]) -> NDArray[np.int64]:
    """(n,): `array` is `values`, exactly; negative ones too."""
    # NumPy makes floats of uint64 and int64, or of ints too large for either, and ints of bools among ints.
    typed = isinstance(values, np.ndarray | torch.Tensor) or (
        array.dtype.kind == "i" and set(map(type, values)) <= {int}
    )
    if array.dtype.kind == "O" or not typed:
        array = np.array([_whole(name, value, array.dtype) for value in values], object)
    if array.size and array.dtype.kind not in "iuO":
        raise TypeError(f"{name}: expected integers, got {array.dtype}")
    if array.size and array.dtype.kind in "uO" and (most := array.max()) > _INT64_MAX:
        raise ValueError(f"{name}: expected numbers up to 2**63 - 1, got {most}")
    return array.astype(np.int64, copy=False)


def _whole(name: str, value: Any, together: np.dtype[Any]) -> int:
    """An integer of any type, as Python's; `together` is what NumPy makes of it and those beside it."""
    if isinstance(value, bool) or getattr(value, "dtype", None) in (np.bool_, torch.bool):
        raise TypeError(f"{name}: expected integers, got {value!r} ({type(value).__name__})")
    try:
        return operator.index(value)
    except TypeError as error:
        got = f"{value!r} ({type(value).__name__})" if together.kind in "iuO" else together
        raise TypeError(f"{name}: expected integers, got {got}") from error


def flatten(histories: Histories) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Normalise and check.

    Returns:
        flat (N,) int64 and offsets (B + 1,) int64; no user is empty.

    Raises:
        TypeError: not a list or a pair, or ids that are not integers.
        ValueError: no users, a user without items (named by place), a negative id, or malformed offsets.
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


def checked(histories: Histories, targets: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Histories as flat (N,) and offsets (S + 1,), and targets (S,), all int64.

    Raises:
        TypeError: ids that are not integers.
        ValueError: no samples, an empty history, or other than one target a history.
    """
    wanted = integers("targets", targets)
    if not len(wanted):
        raise ValueError("samples: got none, expected at least one; is the split that they are of empty?")
    flat, offsets = flatten(histories)
    if len(wanted) != len(offsets) - 1:
        raise ValueError(f"targets: got {len(wanted)} for {len(offsets) - 1} histories, expected one a history")
    return flat, offsets, wanted


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
        arrays = [_array("histories", history) for history in histories]
        if odd := [array.shape for array in arrays if array.ndim != 1]:
            raise TypeError(f"got one of shape {odd[0]}")
    except (TypeError, ValueError) as error:
        raise TypeError(
            "histories: expected a list with one sequence of item ids a user, or a tuple "
            f"(flat, offsets) of arrays ({error})"
        ) from error
    offsets = to_offsets(np.array([len(array) for array in arrays], np.int64))
    if {array.dtype.kind for array in arrays} == {"i"}:
        flat = np.concatenate(arrays, dtype=np.int64)
        if flat.size and flat.min() > 1:  # nothing among them was a bool
            return flat, offsets
    ids = [_int64("histories", history, array) for history, array in zip(histories, arrays, strict=True)]
    return _no_negative("histories", np.concatenate([np.empty(0, np.int64), *ids])), offsets


def how_many(lengths: NDArray[np.int64], limit: int | None, step: int = 1) -> NDArray[np.int64]:
    """(B,) of so many items, the newest `limit` to `limit + step - 1`, as the oldest leave `step` at a time."""
    if limit is None:
        return lengths
    return lengths - whole_steps(lengths - min(int(limit), _INT64_MAX), step)


def whole_steps(counts: NDArray[np.int64], step: int) -> NDArray[np.int64]:
    """The largest multiple of `step` that is not above each count; 0 for a negative one."""
    step = min(int(step), _INT64_MAX)
    return counts.clip(min=0) // step * step


def newest(
    flat: NDArray[np.int64], offsets: NDArray[np.int64], limit: int | None, step: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each user's last items, as many as `how_many`, and how many those are: (M,) and (B,) int64."""
    lengths = np.diff(offsets)
    kept = how_many(lengths, limit, step)
    if (kept == lengths).all():
        return flat, lengths
    return Ragged(flat, offsets).newest(kept).values, kept
