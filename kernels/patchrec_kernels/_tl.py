# SPDX-License-Identifier: Apache-2.0
"""The GPU programs of `compress`. One weighted sum of rows serves the forward and the gradient.

Three things look odd and are needed. Values become fp32 straight after the load, because the
interpreter (TRITON_INTERPRET=1) does bf16 arithmetic on the bits. The sums run over a tile of
BLOCK_T rows into one accumulator, because ptxas issues loads written one by one as they come, which
leaves a thread with three in flight instead of eight. Ids outside the table are counted beside the
sum, because any use of ids on the sum's side makes the compiler load and check them a second time.
"""

# No type says what a kernel takes; the comments do.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

# Plan arrays are views of any alignment and batches of any size: neither is worth a new binary.
_ANY_ALIGNMENT = [
    "ids_ptr",
    "row_offsets_ptr",
    "token_weight_ptr",
    "rows_ptr",
    "index_ptr",
    "scale_ptr",
    "offsets_ptr",
    "unit_ptr",
    "unique_ptr",
]
_jit = triton.jit(
    do_not_specialize=["num_embeddings", "x_rows", "out_rows", "num_rows"],
    do_not_specialize_on_alignment=_ANY_ALIGNMENT,
)


@triton.jit
def _weighted_sum(
    x_ptr,  # (x_rows, D), row stride STRIDE
    x_rows,
    index_ptr,  # rows of x; not read unless GATHER
    scale_ptr,  # fp32; not read unless GATHER
    start,
    end,
    columns,  # (BLOCK_D,)
    D: tl.constexpr,
    STRIDE: tl.constexpr,
    GATHER: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """fp32 (BLOCK_D,): sum over t in [start, end) of scale[t] * x[index[t]], or of x[t].

    A row outside x is not read: it makes the sum NaN.
    """
    total = tl.zeros([BLOCK_D], tl.float32)
    faults = 0
    for first in range(start, end, BLOCK_T):
        t = first + tl.arange(0, BLOCK_T)
        inside = t < end
        if GATHER:
            row = tl.load(index_ptr + t, mask=inside, other=0)
            scale = tl.load(scale_ptr + t, mask=inside, other=0.0)
            known = (row >= 0) & (row < x_rows)
            faults += tl.sum((inside & (known == 0)).to(tl.int32))
            inside = inside & known
        else:
            row = t
            scale = tl.full([BLOCK_T], 1.0, tl.float32)
        source = x_ptr + row.to(tl.int64)[:, None] * STRIDE + columns[None, :]
        mask = inside[:, None] & (columns < D)[None, :]
        x = tl.load(source, mask=mask, other=0.0).to(tl.float32)  # (BLOCK_T, BLOCK_D)
        total += tl.sum(x * scale[:, None], axis=0)
    return tl.where(faults > 0, float("nan"), total)


@_jit
def sum_rows(
    weight_ptr,  # (V, D)
    ids_ptr,
    token_weight_ptr,
    row_offsets_ptr,
    rows_ptr,  # the rows to make
    out_ptr,  # (R, D), contiguous
    num_embeddings,
    D: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out[r] = sum of token_weight[t] * weight[ids[t]]; NaN where row r is marked."""
    blocks: tl.constexpr = tl.cdiv(D, BLOCK_D)
    columns = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    row = tl.load(rows_ptr + tl.program_id(0) // blocks).to(tl.int64)
    start = tl.load(row_offsets_ptr + row)
    end = tl.load(row_offsets_ptr + row + 1)
    end = tl.where(end < 0, -1 - end, end)  # the next row's mark is not this row's
    marked = start < 0
    start = tl.where(marked, end, start)
    total = _weighted_sum(
        weight_ptr, num_embeddings, ids_ptr, token_weight_ptr, start, end, columns,
        D, STRIDE, True, BLOCK_T, BLOCK_D,
    )  # fmt: skip
    total = tl.where(marked, float("nan"), total)
    # Streaming stores leave the cache to the table's rows, which other programs read again.
    target = out_ptr + row * D + columns
    tl.store(target, total.to(out_ptr.dtype.element_ty), mask=columns < D, cache_modifier=".cs")


@_jit
def copy_rows(
    weight_ptr,  # (V, D)
    ids_ptr,
    row_offsets_ptr,
    rows_ptr,  # (num_rows,) rows of one token of weight 1
    out_ptr,  # (R, D), contiguous
    num_embeddings,
    num_rows,
    D: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out[r] = weight[ids[row_offsets[r]]], bit for bit; NaN where the id is outside the table."""
    blocks: tl.constexpr = tl.cdiv(D, BLOCK_D)
    columns = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    p = tl.program_id(0) // blocks * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = p < num_rows
    row = tl.load(rows_ptr + p, mask=inside, other=0).to(tl.int64)
    token = tl.load(row_offsets_ptr + row, mask=inside, other=0)
    index = tl.load(ids_ptr + token, mask=inside, other=0)
    known = inside & (index >= 0) & (index < num_embeddings)
    source = weight_ptr + index.to(tl.int64)[:, None] * STRIDE + columns[None, :]
    in_table = (columns < D)[None, :]
    x = tl.load(source, mask=known[:, None] & in_table, other=float("nan"))  # (BLOCK_R, BLOCK_D)
    target = out_ptr + row[:, None] * D + columns[None, :]
    tl.store(target, x, mask=inside[:, None] & in_table, cache_modifier=".cs")


@_jit
def sum_groups(
    x_ptr,  # (x_rows, D), contiguous
    index_ptr,
    scale_ptr,
    offsets_ptr,  # ranges of index and scale, or of x
    unit_ptr,  # where each range's sum goes: see Plan.chunk_unit
    unique_ptr,  # the row of out of each unit; not read unless SCATTER
    out_ptr,  # (out_rows, D), row stride OUT_STRIDE
    partial_ptr,  # fp32 (slots, D)
    x_rows,
    out_rows,
    D: tl.constexpr,
    OUT_STRIDE: tl.constexpr,
    GATHER: tl.constexpr,
    SCATTER: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The sum of one range, into its unit's row of out (ACCUMULATE: added, once) or its slot."""
    blocks: tl.constexpr = tl.cdiv(D, BLOCK_D)
    columns = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    p = tl.program_id(0) // blocks
    unit = tl.load(unit_ptr + p)
    start = tl.load(offsets_ptr + p)
    end = tl.load(offsets_ptr + p + 1)
    if start < end:
        total = _weighted_sum(
            x_ptr, x_rows, index_ptr, scale_ptr, start, end, columns,
            D, D, GATHER, BLOCK_T, BLOCK_D,
        )  # fmt: skip
        if unit < 0:
            slot = (-1 - unit).to(tl.int64)
            tl.store(partial_ptr + slot * D + columns, total, mask=columns < D)
        else:
            row = unit.to(tl.int64)
            if SCATTER:
                row = tl.load(unique_ptr + unit).to(tl.int64)
            if (row >= 0) & (row < out_rows):
                target = out_ptr + row * OUT_STRIDE + columns
                if ACCUMULATE:
                    total += tl.load(target, mask=columns < D, other=0.0).to(tl.float32)
                rounded = total.to(out_ptr.dtype.element_ty)
                tl.store(target, rounded, mask=columns < D, cache_modifier=".cs")
