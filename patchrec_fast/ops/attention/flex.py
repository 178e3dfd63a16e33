# SPDX-License-Identifier: Apache-2.0
"""`segment_attention` on CUDA: FlexAttention with a block mask of the forest.

The kernel is compiled once, for sizes that change: the forest reaches it as tensors that the mask looks into.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from .mask import sees
from .segments import Segments

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128  # rows of a block, of queries as of keys
_PAIRS = 1 << 26  # of rows, looked at at once

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(device_type: str, dtype: torch.dtype, widths: tuple[int, int]) -> str | None:
    """None where FlexAttention can serve such a call, else the reason in one line."""
    if device_type != "cuda":
        return f"it runs on CUDA tensors, got a tensor on {device_type}"
    if find_spec("triton") is None:
        return "Triton is not installed; pip install triton"
    if dtype not in _DTYPES:
        return f"it takes float32, bfloat16 and float16, got {dtype}; impl='reference' takes any floating dtype"
    if min(widths) < 16 or max(widths) > 256:
        return f"it takes heads of 16 to 256 columns, got {widths[0]} and {widths[1]}"
    return None


def segment_attention(
    query: Tensor,  # (R, Hq, D)
    key: Tensor,  # (R, Hk, D)
    value: Tensor,  # (R, Hk, Dv)
    segments: Segments,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:  # (R, Hq, Dv)
    """As the public function. The block mask is made at a forest's first call, and kept with it."""
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (query, key, value))
    out = _attention(query.device.type)(
        q,
        k,
        v,
        score_mod=None if softcap is None else _capped(softcap),
        block_mask=block_mask(segments, window),
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return cast(Tensor, out)[0].transpose(0, 1)


def block_mask(segments: Segments, window: int | None) -> BlockMask:
    """Made once of the same tensors with the same contents."""
    tensors = (segments.cu_seqlens, segments.parent, segments.visible, segments.position_ids)
    if any(x.is_inference() for x in tensors):  # they count no writes
        return make_block_mask(segments, window)
    version = tuple(x._version for x in tensors)
    kept = segments.kept.get(window)
    if kept is None or kept[0] != version:
        kept = segments.kept[window] = version, make_block_mask(segments, window)
    return cast("BlockMask", kept[1])


def make_block_mask(segments: Segments, window: int | None) -> BlockMask:
    """Blocks of keys that a block of queries sees in part, and in full, found some rows at a time."""
    from torch.nn.attention.flex_attention import BlockMask

    predicate = sees(segments, window)
    rows, device = segments.position_ids.shape[0], segments.position_ids.device
    count = -(-rows // BLOCK)
    key = torch.arange(count * BLOCK, device=device)
    inside, key = key < rows, key.clamp(max=rows - 1)
    step = max(1, _PAIRS // (BLOCK * len(key))) * BLOCK
    some, every = [], []
    for query, here in zip(key.split(step), inside.split(step), strict=True):
        seen = predicate(query.unsqueeze(1), key) & here.unsqueeze(1) & inside
        tiles = seen.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK))  # (blocks, BLOCK, blocks, BLOCK)
        every.append(tiles.all(3).all(1))
        some.append(tiles.any(3).any(1))
    full = torch.cat(every)
    partly = torch.cat(some) & ~full
    return BlockMask.from_kv_blocks(
        *_listed(partly),
        *_listed(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=lambda batch, head, query, key: predicate(query, key),
        seq_lengths=(rows, rows),
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(n, m) bool as (1, 1, n) int32, how many of a line are set, and (1, 1, n, m) int32, which, those first."""
    order = torch.argsort(blocks.to(torch.int8), dim=1, descending=True, stable=True).int()
    return blocks.sum(1, dtype=torch.int32)[None, None], order.contiguous()[None, None]


@cache
def _capped(softcap: float) -> Callable[..., Tensor]:
    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped


@cache
def _attention(device_type: str) -> Any:
    """Compiled for sizes that change, except where it only checks values: on the CPU it has no backward."""
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention if device_type == "cpu" else torch.compile(flex_attention, dynamic=True)
