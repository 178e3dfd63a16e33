# SPDX-License-Identifier: Apache-2.0
"""Packed causal attention on the CPU: torch's own flash kernel, one sequence at a time, as one operator.

torch's `varlen_attn` has no CPU kernel. The loop over sequences reads their lengths, so it lies inside an operator
that is opaque to the compiler. Autograd does not see into such an operator either: the log-sum-exps are kept and
the backward is the flash kernel's, also one sequence at a time.

A sequence may have more keys than queries: the queries are its last rows then, as flash-attention's kernels have it.
The kernel's causality is aligned to the first row, not to the last. So few keys take a mask; in front of the queries of
many, zeros stand for the queries that are absent, which is less work than a mask of all keys.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..schemas import LIBRARY

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

_BLOCK = 512  # keys: the kernel leaves out what is after a row by blocks of so many


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    scale: float,
    window: int | None = None,
    cu_seqlens_k: Tensor | None = None,
) -> Tensor:
    """Causal attention of each row to the rows of its own sequence.

    Args:
        query: (R, Hq, D) on the CPU, floating.
        key, value: (S, Hk, D), of query's dtype; Hk divides Hq.
        cu_seqlens: (B + 1,) int32 or int64; sequence b's queries are `cu_seqlens[b]:cu_seqlens[b + 1]`.
        scale: of the logits.
        window: how many rows a row sees, itself included; None is all before it.
        cu_seqlens_k: (B + 1,) the same of keys, at least as many in each sequence; the queries are its last rows.
            None where every row is a query.

    Returns:
        (R, Hq, D).

    Raises:
        ValueError: cu_seqlens that do not divide the R rows, or the S keys; fewer keys than queries.
    """
    bounds = (cu_seqlens, cu_seqlens if cu_seqlens_k is None else cu_seqlens_k)
    return torch.ops.patchrec_fast.varlen_attention(query, key, value, *bounds, scale, window)[0]


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    cu_seqlens_k: Tensor,
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor]:  # (R, Hq, D), (R, Hq)
    out = query.new_empty(query.shape)
    lse = query.new_empty(query.shape[:2], dtype=_lse_dtype(query))
    groups = key.shape[1]
    for rows, keys in _segments(cu_seqlens, cu_seqlens_k, query.shape[0], key.shape[0]):
        mask, absent = _causality(query, rows, keys, window)
        q = _after(absent, _heads(query[rows], groups))
        k, v = _shared(key[keys], value[keys], query.shape[1])
        made, kept = _flash(q, k, v, 0.0, mask is None, attn_mask=mask, scale=scale)
        _heads(out[rows], groups).copy_(made[:, :, absent:])
        lse[rows].unflatten(1, (groups, -1)).copy_(kept[:, :, absent:].permute(2, 0, 1))
    return out, lse


def _backward(
    grad: Tensor,  # (R, Hq, D)
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    cu_seqlens_k: Tensor,
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    dquery = query.new_empty(query.shape)
    dkey, dvalue = key.new_zeros(key.shape), value.new_zeros(value.shape)  # some may have no queries
    groups = key.shape[1]
    for rows, keys in _segments(cu_seqlens, cu_seqlens_k, query.shape[0], key.shape[0]):
        mask, absent = _causality(query, rows, keys, window)
        dq, dk, dv = _flash_backward(
            _after(absent, _heads(grad[rows], groups)),
            _after(absent, _heads(query[rows], groups)),
            *_shared(key[keys], value[keys], query.shape[1]),
            _after(absent, _heads(out[rows], groups)),
            _after(absent, lse[rows].unflatten(1, (groups, -1)).permute(1, 2, 0)),
            0.0,
            mask is None,
            attn_mask=mask,
            scale=scale,
        )
        _heads(dquery[rows], groups).copy_(dq[:, :, absent:])
        dkey[keys].copy_(dk.sum(1).transpose(0, 1))  # over the queries that share the head
        dvalue[keys].copy_(dv.sum(1).transpose(0, 1))
    return dquery, dkey, dvalue


def _causality(like: Tensor, rows: slice, keys: slice, window: int | None) -> tuple[Tensor | None, int]:
    """A mask (n, S) of 0 and -inf, or None where the kernel's own causality serves, behind so many absent queries."""
    n, size = rows.stop - rows.start, keys.stop - keys.start
    slides = window is not None and size > window
    if not slides and (n == size or size > _BLOCK):
        return None, size - n
    mask = like.new_full((n, size), -torch.inf).triu_(size - n + 1)
    if slides:
        mask += torch.full_like(mask, -torch.inf).tril_(size - n - window)
    return mask, 0


def _after(absent: int, x: Tensor) -> Tensor:
    """(Hk, Hq / Hk, n, ...) behind so many rows of zeros."""
    return F.pad(x, [0, 0] * (x.ndim - 3) + [absent, 0]) if absent else x


def _segments(cu_seqlens: Tensor, cu_seqlens_k: Tensor, rows: int, keys: int) -> Iterator[tuple[slice, slice]]:
    """The queries and the keys of each sequence that has queries."""
    mine, theirs = _slices("cu_seqlens", cu_seqlens, rows), _slices("cu_seqlens_k", cu_seqlens_k, keys)
    if len(mine) != len(theirs) or any(a.stop - a.start > b.stop - b.start for a, b in zip(mine, theirs, strict=True)):
        raise ValueError(
            "cu_seqlens_k must give each sequence at least as many keys as it has queries; "
            f"got {cu_seqlens_k.tolist()} with cu_seqlens {cu_seqlens.tolist()}"
        )
    return ((a, b) for a, b in zip(mine, theirs, strict=True) if a.stop > a.start)


def _slices(name: str, cu_seqlens: Tensor, rows: int) -> list[slice]:
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != rows or any(b < a for a, b in pairwise(bounds)):
        raise ValueError(f"{name} must rise from 0 to the {rows} rows, got {bounds}")
    return [slice(a, b) for a, b in pairwise(bounds)]


def _heads(x: Tensor, groups: int) -> Tensor:
    """(n, Hq, D) as (Hk, Hq / Hk, n, D), a view: the queries of one key head side by side."""
    return x.unflatten(1, (groups, -1)).permute(1, 2, 0, 3)


def _shared(key: Tensor, value: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """(n, Hk, D) as (Hk, Hq / Hk, n, D) without a copy: stride 0 over the queries that share a head."""
    groups = key.shape[1]
    shape = (groups, heads // groups, key.shape[0], key.shape[2])
    return key.transpose(0, 1).unsqueeze(1).expand(shape), value.transpose(0, 1).unsqueeze(1).expand(shape)


def _lse_dtype(query: Tensor) -> torch.dtype:
    return torch.float64 if query.dtype == torch.float64 else torch.float32


LIBRARY.impl("varlen_attention", _forward, "CPU")
LIBRARY.impl("varlen_attention_backward", _backward, "CPU")


@torch.library.register_fake("patchrec_fast::varlen_attention")
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    cu_seqlens_k: Tensor,
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), query.new_empty(query.shape[:2], dtype=_lse_dtype(query))


@torch.library.register_fake("patchrec_fast::varlen_attention_backward")
def _(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    cu_seqlens_k: Tensor,
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *given, ctx.scale, ctx.window = inputs
    query, key, value, *bounds = given
    ctx.save_for_backward(query, key, value, *output, *bounds)
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    made = torch.ops.patchrec_fast.varlen_attention_backward(grad, *ctx.saved_tensors, ctx.scale, ctx.window)
    return *made, None, None, None, None


torch.library.register_autograd("patchrec_fast::varlen_attention", _gradient, setup_context=_save)
