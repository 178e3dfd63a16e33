# SPDX-License-Identifier: Apache-2.0
"""`compress` and its gradient on a GPU: what is launched, over what, with which tiles.

Every `plan` is a `patchrec_fast.ops.compress.Plan` on the device of the other tensors; untyped, for this package
imports nothing of that one. Nothing here waits for the device unless it says so. Ids and rows outside their tables
are never read or written: a row with such an id is NaN, and its gradient skips that id.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from patchrec_kernels._launch import device_of, target
from patchrec_kernels._tl import copy_rows, sum_groups, sum_rows

BLOCK_T = 8
"""Rows in a tile, which are the loads a thread has in flight. 16 take so many registers that the
chip as a whole has no more in flight, 4 halve it (counted in SASS; not measured on a GPU)."""


class Tile(NamedTuple):
    """Columns of a program, and the compiler's options for it."""

    block_d: int
    options: dict[str, Any]


@functools.cache
def tile(d: int, itemsize: int, backend: str, warp_size: int) -> Tile:
    """The tile for rows of d elements: 16 bytes a thread, so that a row's tile is one load wide.

    The widest of 4, 2 and 1 warps among those that waste fewest columns. maxnreg 72 makes ptxas
    keep a tile's eight loads in flight: left to itself it holds four of them back to save
    registers, and within 64 it holds back two to four on sm_100 (sm_80 and sm_90 use 64 in bf16).
    """
    widths = {warps: 16 // itemsize * warp_size * warps for warps in (4, 2, 1)}
    warps = min(widths, key=lambda n: triton.cdiv(d, widths[n]) * widths[n])
    options: dict[str, Any] = {"num_warps": warps, "enable_fp_fusion": True}
    if backend == "cuda":
        options["maxnreg"] = 72
    return Tile(widths[warps], options)


def compress(weight: Tensor, ids: Tensor, plan: Any) -> Tensor:
    """out (R, d) of weight's dtype: sum of token_weight[t] * weight[ids[t]], in fp32, rounded once.

    weight: (V, d) fp32, bf16 or fp16, stride(1) == 1. ids: (T,) int32 or int64.
    16-byte loads need 16-byte-aligned rows; other tables are read right, in narrower loads.
    """
    _same("ids", ids.numel(), "plan", plan.token_weight.numel())
    out = weight.new_empty(plan.row_offsets.numel() - 1, weight.shape[1])
    if out.numel() == 0:
        return out
    V, d = weight.shape
    block_d, options = _tile_for(weight)
    blocks = triton.cdiv(d, block_d)
    longs, singles = plan.long_rows.numel(), plan.single_rows.numel()
    with device_of(weight):
        if longs:
            sum_rows[(longs * blocks,)](
                weight, ids, plan.token_weight, plan.row_offsets, plan.long_rows, out, V,
                D=d, STRIDE=weight.stride(0), BLOCK_T=BLOCK_T, BLOCK_D=block_d, **options,
            )  # fmt: skip
        if singles:
            copy_rows[(triton.cdiv(singles, BLOCK_T) * blocks,)](
                weight, ids, plan.row_offsets, plan.single_rows, out, V, singles,
                D=d, STRIDE=weight.stride(0), BLOCK_R=BLOCK_T, BLOCK_D=block_d, **options,
            )  # fmt: skip
    return out


def compress_backward_(into: Tensor, grad: Tensor, plan: Any) -> None:
    """Add the gradient into `into` (V, d), stride(1) == 1: each id's row is read and written once.

    grad: (R, d), contiguous. The sum is made in fp32 and in one order: the same bits every time.

    Raises:
        ValueError: strides or sizes do not fit.
    """
    if into.stride(1) != 1 and into.shape[1] > 1:
        raise ValueError(f"into: got strides {into.stride()}, expected 1 between columns")
    _same("into's columns", into.shape[1], "gradient", grad.shape[1])
    _reduce(into, grad, plan, scatter=True, accumulate=True)


def compress_backward(grad: Tensor, num_embeddings: int, plan: Any) -> Tensor:
    """The gradient as (num_embeddings, d) of grad's dtype. grad: (R, d), contiguous."""
    dense = grad.new_zeros(num_embeddings, grad.shape[1])
    _reduce(dense, grad, plan, scatter=True, accumulate=False)
    return dense


def compress_backward_sparse(grad: Tensor, plan: Any) -> tuple[Tensor, Tensor]:
    """The gradient's rows: distinct ids (U,) int64, ascending, and (U, d) of grad's dtype.

    grad: (R, d), contiguous. With a padded plan (made on the device) the number of ids is only
    known there, so this call waits for it.
    """
    ids = plan.unique_ids
    rows = grad.new_empty(ids.numel(), grad.shape[1])
    _reduce(rows, grad, plan, scatter=False, accumulate=False)
    if plan.padded:
        found = int((ids >= 0).sum())
        ids, rows = ids[:found], rows[:found]
    return ids.long(), rows


def _reduce(out: Tensor, grad: Tensor, plan: Any, scatter: bool, accumulate: bool) -> None:
    """Sum the chunks of each id into out, those of long ids by way of fp32 partial sums."""
    R, d = grad.shape
    _same("grad's rows", R, "plan", plan.row_offsets.numel() - 1)
    _same("the plan's gradient", plan.grad_rows.numel(), "plan", plan.token_weight.numel())
    chunks, merges = plan.chunk_unit.numel(), plan.merge_unit.numel()
    if out.numel() == 0 or chunks == 0:
        return
    partial = torch.empty(plan.partials, d, dtype=torch.float32, device=grad.device)
    where = {"D": d, "OUT_STRIDE": out.stride(0), "SCATTER": scatter, "ACCUMULATE": accumulate}
    with device_of(grad):
        block_d, options = _tile_for(grad)
        sum_groups[(chunks * triton.cdiv(d, block_d),)](
            grad, plan.grad_rows, plan.grad_weight, plan.chunk_offsets, plan.chunk_unit,
            plan.unique_ids, out, partial, R, out.shape[0],
            GATHER=True, BLOCK_T=BLOCK_T, BLOCK_D=block_d, **where, **options,
        )  # fmt: skip
        if merges:
            block_d, options = _tile_for(partial)
            sum_groups[(merges * triton.cdiv(d, block_d),)](
                partial, plan.grad_rows, plan.grad_weight, plan.merge_offsets, plan.merge_unit,
                plan.unique_ids, out, partial, partial.shape[0], out.shape[0],
                GATHER=False, BLOCK_T=BLOCK_T, BLOCK_D=block_d, **where, **options,
            )  # fmt: skip


def _tile_for(x: Tensor) -> Tile:
    gpu = target(x.device.type)
    return tile(x.shape[1], x.element_size(), gpu.backend, gpu.warp_size)


def _same(name: str, got: int, of: str, expected: int) -> None:
    if got != expected:
        raise ValueError(f"{name}: got {got}, expected {expected} as in the {of}")
