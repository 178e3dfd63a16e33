# SPDX-License-Identifier: Apache-2.0
"""The log-sum-exp of rows on a GPU, in one pass over them.

PyTorch's own makes a float32 copy of a half-precision matrix and passes over that six times. Of a language model's
head that is most of what is read and written after the product.
"""

# No type says what a kernel takes; the comments do.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from patchrec_kernels._launch import device_limits, device_of

PROGRAMS = 4
"""Programs per multiprocessor that rows are split for, if they are too few; not measured on a GPU."""


class Tile(NamedTuple):
    """What a program reads at a time, and the compiler's options for it."""

    rows: int
    columns: int
    options: dict[str, Any]


_FUSED = {"enable_fp_fusion": True}
ACROSS = Tile(1, 4096, {"num_warps": 8} | _FUSED)  # a row's elements are adjacent
DOWN = Tile(64, 32, {"num_warps": 4} | _FUSED)  # a column's are


@triton.jit
def _finished(logits, SCALE: tl.constexpr, SOFTCAP: tl.constexpr):
    """As the model has them, fp32."""
    logits = logits.to(tl.float32) * SCALE
    if SOFTCAP is not None:  # tanh x = 2 sigmoid 2x - 1
        logits = (2.0 * tl.sigmoid(logits * (2.0 / SOFTCAP)) - 1.0) * SOFTCAP
    return logits


@triton.jit
def _add(top, base, mass, logits):
    """The state with one more tile of logits, fp32 (BLOCK_R, BLOCK_C), in it."""
    LOG2_E: tl.constexpr = 1.4426950408889634
    top = tl.maximum(top, tl.max(logits, 1))
    higher = tl.where((top == float("-inf")) | (top == float("inf")), 0.0, top)  # inf - inf is NaN
    mass *= tl.exp2((base - higher) * LOG2_E)
    mass += tl.sum(tl.exp2((logits - higher[:, None]) * LOG2_E), 1)
    return top, higher, mass


@triton.jit(do_not_specialize=["rows", "columns", "share"])
def log_sums(
    logits_ptr,  # (rows, columns)
    out_ptr,  # fp32 (splits, rows)
    rows,
    columns,
    share,  # tiles of columns of a split
    row_stride,
    column_stride,
    SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Of a tile of rows, what a split of their columns has. Grid: (cdiv(rows, BLOCK_R), splits).

    Whole tiles are loaded without a mask: with one, whose end is no multiple, an element at a time.
    """
    LOG_2: tl.constexpr = 0.6931471805599453
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    first = tl.program_id(1) * share * BLOCK_C
    end = tl.minimum(first + share * BLOCK_C, columns)
    source = logits_ptr + row.to(tl.int64)[:, None] * row_stride
    top = tl.full([BLOCK_R], float("-inf"), tl.float32)  # the largest logit so far
    base = tl.zeros([BLOCK_R], tl.float32)  # it, where it is finite
    mass = tl.zeros([BLOCK_R], tl.float32)  # the sum of exp(logit - base)
    whole = 0
    if (tl.program_id(0) + 1) * BLOCK_R <= rows:
        whole = (end - first) // BLOCK_C
    for tile in range(whole):
        column = first + tile * BLOCK_C + tl.arange(0, BLOCK_C)
        logits = tl.load(source + column.to(tl.int64)[None, :] * column_stride)
        top, base, mass = _add(top, base, mass, _finished(logits, SCALE, SOFTCAP))
    for start in range(first + whole * BLOCK_C, end, BLOCK_C):
        column = start + tl.arange(0, BLOCK_C)
        mask = (row < rows)[:, None] & (column < end)[None, :]
        at = source + column.to(tl.int64)[None, :] * column_stride
        logits = _finished(tl.load(at, mask=mask, other=0.0), SCALE, SOFTCAP)
        top, base, mass = _add(top, base, mass, tl.where(mask, logits, float("-inf")))
    target = out_ptr + tl.program_id(1).to(tl.int64) * rows + row
    tl.store(target, base + tl.log2(mass) * LOG_2, mask=row < rows)


def log_sum_exp(logits: Tensor, scale: float = 1.0, softcap: float | None = None, splits: int | None = None) -> Tensor:
    """(N,) fp32: log of the sum of exp(softcap * tanh(scale * x / softcap)), or of exp(scale * x), over each row.

    logits: (N, V) fp32, bf16 or fp16, of any strides. A row with +inf or NaN, or all -inf, has what
    `torch.logsumexp` gives it.

    Args:
        splits: over so many programs a row is split; None fills the device.
    """
    rows, columns = logits.shape
    tile = ACROSS if logits.stride(1) == 1 or logits.stride(0) != 1 else DOWN
    tiles = triton.cdiv(rows, tile.rows)
    if splits is None:
        splits = triton.cdiv(PROGRAMS * device_limits(logits.device).multiprocessors, max(1, tiles))
    share = max(1, triton.cdiv(triton.cdiv(columns, tile.columns), max(1, splits)))  # tiles
    splits = max(1, triton.cdiv(columns, share * tile.columns))
    out = torch.empty(splits, rows, dtype=torch.float32, device=logits.device)
    if rows:
        with device_of(logits):
            log_sums[(tiles, splits)](
                logits, out, rows, columns, share, *logits.stride(),
                SCALE=scale, SOFTCAP=softcap, BLOCK_R=tile.rows, BLOCK_C=tile.columns, **tile.options,
            )  # fmt: skip
    return out[0] if splits == 1 else log_sum_exp(out.mT, splits=1)
