# SPDX-License-Identifier: Apache-2.0
"""What `compress` accepts. Shapes and dtypes are checked on every call; values where reading them costs no wait."""

import torch
from torch import Tensor

Offsets = Tensor | tuple[Tensor, Tensor]

_INTEGERS = (torch.int32, torch.int64)


def check_shapes(ids: Tensor, offsets: Offsets, weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """Checks all that needs no look at the values; returns (token_offsets, item_offsets or None)."""
    _check_integers("ids", ids)
    token_offsets: Tensor
    item_offsets: Tensor | None = None
    if isinstance(offsets, Tensor):
        token_offsets = offsets
        _check_offsets("offsets", token_offsets, ids)
    elif isinstance(offsets, (tuple, list)) and len(offsets) == 2:
        token_offsets, item_offsets = offsets
        _check_offsets("offsets[0] (token_offsets)", token_offsets, ids)
        _check_offsets("offsets[1] (item_offsets)", item_offsets, ids)
    else:
        got = f"{type(offsets).__name__} of {len(offsets)}" if hasattr(offsets, "__len__") else repr(offsets)
        raise TypeError(f"offsets must be a tensor or a pair (token_offsets, item_offsets), got {got}")
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a tensor (V, d), got {type(weight).__name__}")
    if type(weight).__name__ == "DTensor":
        raise TypeError("weight is a DTensor, one shard of a table; pass its embedding module instead")
    if weight.ndim != 2:
        raise ValueError(f"weight must be 2-D (V, d), got shape {tuple(weight.shape)}")
    if weight.layout != torch.strided:
        raise TypeError(f"weight must be a dense table, got a {weight.layout} tensor")
    if not weight.is_floating_point():
        raise TypeError(f"weight must be floating point, got {weight.dtype}")
    _check_device("weight", weight, ids)
    return token_offsets, item_offsets


def _check_offsets(name: str, x: Tensor, ids: Tensor) -> None:
    _check_integers(name, x)
    _check_device(name, x, ids)


def _check_integers(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a 1-D int32 or int64 tensor, got {type(x).__name__}")
    if x.dtype not in _INTEGERS:
        raise TypeError(f"{name} must be int32 or int64, got {x.dtype}")
    if x.layout != torch.strided:
        raise TypeError(f"{name} must be dense, got a {x.layout} tensor")
    if x.ndim != 1:
        raise ValueError(f"{name} must be 1-D, got shape {tuple(x.shape)}")


def _check_device(name: str, x: Tensor, ids: Tensor) -> None:
    if x.device != ids.device:
        raise ValueError(f"{name} must be on ids' device {ids.device}, got {x.device}")


def check_values(ids: Tensor, token_offsets: Tensor, item_offsets: Tensor | None, num_embeddings: int) -> None:
    """Raises ValueError unless the CSR is well formed and every id is a row of the table.

    Reads the values, so it waits for the device the tensors are on. `compress` itself does this on the CPU only;
    on a GPU a bad id or offset gives a row of NaN instead (never a read or write out of bounds), and this
    function says which it was.
    """
    name = "offsets" if item_offsets is None else "offsets[0] (token_offsets)"
    _check_partition(name, token_offsets, ids.shape[0], "len(ids)")
    if item_offsets is not None:
        items = token_offsets.shape[0] - 1
        _check_partition("offsets[1] (item_offsets)", item_offsets, items, "the number of items")
    bad = (ids < 0) | (ids >= num_embeddings)
    if bool(bad.any()):
        at = int(bad.int().argmax())
        raise ValueError(f"ids must be in [0, {num_embeddings}), got {int(ids[at])} at position {at}")


def _check_partition(name: str, offsets: Tensor, end: int, meaning: str) -> None:
    if offsets.shape[0] == 0:
        raise ValueError(f"{name} must have at least one element, got none")
    if int(offsets[0]) != 0:
        raise ValueError(f"{name} must start at 0, got {int(offsets[0])}")
    decreasing = offsets.diff() < 0
    if bool(decreasing.any()):
        at = int(decreasing.int().argmax())
        raise ValueError(
            f"{name} must not decrease, got {int(offsets[at])} then {int(offsets[at + 1])} at position {at + 1}"
        )
    if int(offsets[-1]) != end:
        raise ValueError(f"{name} must end at {meaning} = {end}, got {int(offsets[-1])}")
