# SPDX-License-Identifier: Apache-2.0
"""The GPU programs of `tree_attention`: one reads the prompts, one the paths, and the second merges.

Both put tiles of keys into the softmax of a tile of queries (FlashAttention's online softmax). The
queries of one key head make tiles: in the first program those of all rows of a user, which so read
the prompt once a tile; in the second those of one row, for the rows on a path are its own. The
prompt's keys are split over programs, and the parts are merged by their log-sum-exp.

Logarithms are to the base 2, which is what the hardware has. OPERAND is the type of the products'
operands where the interpreter needs another than the tensors': it does bf16 arithmetic on the bits.
"""

# No type says what a kernel takes; the comments do.
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

# Batches of any size, and offsets that are views, are not worth a new binary.
_jit = triton.jit(
    do_not_specialize=["users", "rows", "prompt_rows", "tree_rows", "path_columns", "path_stride", "tiles", "splits"],
    do_not_specialize_on_alignment=["cu_seqlens_ptr", "cu_rows_ptr", "path_ptr"],
)


@triton.jit
def _see(
    top,  # fp32 (M,), the largest logit so far
    mass,  # fp32 (M,), the sum of exp2(logit - top)
    total,  # fp32 (M, D_TILE), the sum of exp2(logit - top) * value
    query,  # (M, D_TILE)
    key_ptr,  # the head's
    key_stride,
    value_ptr,
    value_stride,
    at,  # (N,), the rows of keys and values
    there,  # (N,), whether they may be read
    seen,  # (M, N), False where not there
    D: tl.constexpr,
    SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """The state with one more tile of keys in it; zeros and -inf where nothing is seen."""
    columns = tl.arange(0, total.shape[1])
    mask = there[:, None] & (columns < D)[None, :]
    row = at.to(tl.int64)[:, None]
    key = tl.load(key_ptr + row * key_stride + columns[None, :], mask=mask, other=0.0)
    value = tl.load(value_ptr + row * value_stride + columns[None, :], mask=mask, other=0.0)
    LOG2_E: tl.constexpr = 1.4426950408889634
    keyed = tl.dot(query, tl.trans(key.to(query.dtype)), input_precision="ieee")  # (M, N)
    if SOFTCAP is None:
        logits = keyed * (SCALE * LOG2_E)
    else:  # tanh x = 2 sigmoid 2x - 1
        logits = (2.0 * tl.sigmoid(keyed * (2.0 * SCALE / SOFTCAP)) - 1.0) * (SOFTCAP * LOG2_E)
    logits = tl.where(seen, logits, float("-inf"))
    higher = tl.maximum(top, tl.max(logits, 1))
    base = tl.where(higher == float("-inf"), 0.0, higher)  # -inf - -inf is NaN
    weight = tl.exp2(logits - base[:, None])
    fade = tl.exp2(top - base)
    rounded = weight.to(value.dtype)
    if OPERAND is not None:
        rounded, value = rounded.to(OPERAND), value.to(OPERAND)
    total = tl.dot(rounded, value, total * fade[:, None], input_precision="ieee")
    return higher, mass * fade + tl.sum(weight, 1), total


@triton.jit
def _load_queries(
    query_ptr, row_stride, head_stride, row, head, inside, D_TILE: tl.constexpr, D: tl.constexpr, OPERAND: tl.constexpr
):
    """(M, D_TILE); zeros where not inside."""
    columns = tl.arange(0, D_TILE)
    source = query_ptr + row.to(tl.int64) * row_stride + head.to(tl.int64) * head_stride
    mask = inside[:, None] & (columns < D)[None, :]
    query = tl.load(source[:, None] + columns[None, :], mask=mask, other=0.0)
    if OPERAND is not None:
        query = query.to(OPERAND)
    return query


@triton.jit
def _path_ends(path_ptr, path_stride, row, inside, path_columns, tree_rows, TILE: tl.constexpr):
    """(M,): where each row itself stands on its path; -1 for an empty path."""
    end = tl.full(row.shape, -1, tl.int32)
    for first in range(0, path_columns, TILE):
        a = first + tl.arange(0, TILE)
        mask = inside[:, None] & (a < path_columns)[None, :]
        source = path_ptr + row.to(tl.int64)[:, None] * path_stride + a[None, :]
        entry = tl.load(source, mask=mask, other=-1)
        known = (entry >= 0) & (entry < tree_rows)
        end = tl.maximum(end, tl.max(tl.where(known, a[None, :], -1), 1))
    return end


@_jit
def read_prompts(
    query_ptr,  # (rows, Hq, D)
    key_ptr,  # (prompt_rows, Hk, D)
    value_ptr,
    cu_seqlens_ptr,  # int32 (B + 1,)
    path_ptr,  # int64 (rows, path_columns); not read without a WINDOW
    cu_rows_ptr,  # int32 (B + 1,)
    mean_ptr,  # fp32 (splits, rows, Hq, D): the mean of values; zeros where nothing is seen
    lse_ptr,  # fp32 (splits, rows, Hq)
    query_row_stride,
    query_head_stride,
    key_row_stride,
    key_head_stride,
    value_row_stride,
    value_head_stride,
    path_stride,
    rows,
    prompt_rows,
    tree_rows,
    path_columns,
    tiles,  # of a user's queries of one key head
    D: tl.constexpr,
    GROUP: tl.constexpr,
    SCALE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    OPERAND: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    D_TILE: tl.constexpr,
):
    """What a tile of a user's queries sees of a split of the user's prompt. Grid: (B * tiles, Hk, splits).

    The queries are those of all rows and heads, a row's heads side by side, so a tile may begin and end within a row.
    Splits share what a prompt has, not what it might have: bounds that are not tight cost no balance.
    """
    user = tl.program_id(0) // tiles
    split, splits = tl.program_id(2), tl.num_programs(2)
    m = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    first = tl.load(cu_rows_ptr + user)
    last = tl.minimum(tl.load(cu_rows_ptr + user + 1), rows)
    if first + tl.program_id(0) % tiles * BLOCK_M // GROUP >= last:
        return
    begin = tl.maximum(tl.load(cu_seqlens_ptr + user), 0)
    length = tl.minimum(tl.load(cu_seqlens_ptr + user + 1), prompt_rows) - begin

    row = first + m // GROUP
    head = tl.program_id(1) * GROUP + m % GROUP
    inside = row < last
    query = _load_queries(query_ptr, query_row_stride, query_head_stride, row, head, inside, D_TILE, D, OPERAND)
    oldest = 0
    if WINDOW is not None:
        position = length + _path_ends(path_ptr, path_stride, row, inside, path_columns, tree_rows, 16)
        oldest = tl.maximum(length - WINDOW + 1, 0)  # of what a row directly behind the prompt sees
    share = tl.cdiv(tl.cdiv(length - oldest, splits), BLOCK_N) * BLOCK_N
    start = oldest + split * share
    end = tl.minimum(start + share, length)

    key_ptr += tl.program_id(1).to(tl.int64) * key_head_stride
    value_ptr += tl.program_id(1).to(tl.int64) * value_head_stride
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    mass = tl.zeros([BLOCK_M], tl.float32)
    total = tl.zeros([BLOCK_M, D_TILE], tl.float32)
    for s in range(start, end, BLOCK_N):
        at = s + tl.arange(0, BLOCK_N)
        there = at < end
        seen = inside[:, None] & there[None, :]
        if WINDOW is not None:
            seen = seen & (position[:, None] - at[None, :] < WINDOW)
        top, mass, total = _see(
            top, mass, total, query, key_ptr, key_row_stride, value_ptr, value_row_stride,
            begin + at, there, seen, D, SCALE, SOFTCAP, OPERAND,
        )  # fmt: skip

    something = mass != 0
    divisor = tl.where(something, mass, 1.0)
    target = (split * rows + row).to(tl.int64) * (tl.num_programs(1) * GROUP) + head
    lse = tl.where(something, top + tl.log2(divisor), float("-inf"))
    tl.store(lse_ptr + target, lse, mask=inside)
    mean = tl.where(something[:, None], total / divisor[:, None], 0.0)  # of values that are not finite, 0 times is NaN
    columns = tl.arange(0, D_TILE)
    tl.store(mean_ptr + target[:, None] * D + columns[None, :], mean, mask=inside[:, None] & (columns < D)[None, :])


@_jit
def read_paths(
    query_ptr,  # (rows, Hq, D)
    key_ptr,  # (tree_rows, Hk, D)
    value_ptr,
    path_ptr,  # int64 (rows, path_columns)
    cu_rows_ptr,  # int32 (B + 1,)
    users,  # B
    mean_ptr,  # what read_prompts made
    lse_ptr,
    out_ptr,  # (rows, Hq, D), contiguous
    query_row_stride,
    query_head_stride,
    key_row_stride,
    key_head_stride,
    value_row_stride,
    value_head_stride,
    path_stride,
    rows,
    tree_rows,
    path_columns,
    splits,
    D: tl.constexpr,
    GROUP: tl.constexpr,
    SCALE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    OPERAND: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_A: tl.constexpr,
    D_TILE: tl.constexpr,
):
    """What a row sees of its path, merged with what it saw of its prompt. Grid: (rows, Hk * cdiv(GROUP, BLOCK_G)).

    Rows that are no user's are zeros.
    """
    TILES: tl.constexpr = tl.cdiv(GROUP, BLOCK_G)
    row, key_head = tl.program_id(0), tl.program_id(1) // TILES
    query_heads = tl.num_programs(1) // TILES * GROUP
    g = tl.program_id(1) % TILES * BLOCK_G + tl.arange(0, BLOCK_G)
    head = key_head * GROUP + g
    same = row + tl.zeros([BLOCK_G], tl.int32)
    inside = (g < GROUP) & (same < tl.load(cu_rows_ptr + users))
    query = _load_queries(query_ptr, query_row_stride, query_head_stride, same, head, inside, D_TILE, D, OPERAND)
    if WINDOW is not None:
        itself = _path_ends(path_ptr, path_stride, same, inside, path_columns, tree_rows, BLOCK_A)

    key_ptr += key_head.to(tl.int64) * key_head_stride
    value_ptr += key_head.to(tl.int64) * value_head_stride
    path_ptr += row.to(tl.int64) * path_stride
    top = tl.full([BLOCK_G], float("-inf"), tl.float32)
    mass = tl.zeros([BLOCK_G], tl.float32)
    total = tl.zeros([BLOCK_G, D_TILE], tl.float32)
    for first in range(0, path_columns, BLOCK_A):
        a = first + tl.arange(0, BLOCK_A)
        at = tl.load(path_ptr + a, mask=a < path_columns, other=-1)
        there = (at >= 0) & (at < tree_rows)
        seen = inside[:, None] & there[None, :]
        if WINDOW is not None:
            seen = seen & (itself[:, None] - a[None, :] < WINDOW)
        top, mass, total = _see(
            top, mass, total, query, key_ptr, key_row_stride, value_ptr, value_row_stride,
            at, there, seen, D, SCALE, SOFTCAP, OPERAND,
        )  # fmt: skip

    columns = tl.arange(0, D_TILE)
    in_row = (columns < D)[None, :]
    for split in range(splits):
        source = (split * rows + row).to(tl.int64) * query_heads + head
        lse = tl.load(lse_ptr + source, mask=inside, other=float("-inf"))
        mean = tl.load(mean_ptr + source[:, None] * D + columns[None, :], mask=inside[:, None] & in_row, other=0.0)
        higher = tl.maximum(top, lse)
        base = tl.where(higher == float("-inf"), 0.0, higher)
        fade, share = tl.exp2(top - base), tl.exp2(lse - base)
        total = total * fade[:, None] + mean * share[:, None]
        mass = mass * fade + share
        top = higher

    out = total / tl.where(mass == 0, 1.0, mass)[:, None]
    target = out_ptr + (row.to(tl.int64) * query_heads + head)[:, None] * D + columns[None, :]
    tl.store(target, out.to(out_ptr.dtype.element_ty), mask=(g < GROUP)[:, None] & in_row)
