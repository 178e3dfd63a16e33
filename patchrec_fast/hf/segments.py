# SPDX-License-Identifier: Apache-2.0
"""Packed causal attention on the CPU: torch's own flash kernel, one sequence at a time, as one operator.

torch's `varlen_attn` has no CPU kernel. The loop over sequences reads their lengths, so it lies inside an operator
that is opaque to the compiler. Autograd does not see into such an operator either: the log-sum-exps are kept and
the backward is the flash kernel's, also one sequence at a time.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

_QKV = "Tensor query, Tensor key, Tensor value"
_SEGMENTS = "Tensor cu_seqlens, float scale, int? window"

_LIBRARY = torch.library.Library("patchrec_fast", "FRAGMENT")
_LIBRARY.define(f"varlen_attention({_QKV}, {_SEGMENTS}) -> (Tensor, Tensor)")
_LIBRARY.define(
    f"varlen_attention_backward(Tensor grad, {_QKV}, Tensor out, Tensor lse, {_SEGMENTS}) -> (Tensor, Tensor, Tensor)"
)


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, scale: float, window: int | None = None
) -> Tensor:
    """Causal attention of each row to the rows of its own sequence.

    Args:
        query: (R, Hq, D) on the CPU, floating.
        key, value: (R, Hk, D), of query's dtype; Hk divides Hq.
        cu_seqlens: (B + 1,) int32 or int64; sequence b is the rows `cu_seqlens[b]:cu_seqlens[b + 1]`.
        scale: of the logits.
        window: how many rows a row sees, itself included; None is all before it.

    Returns:
        (R, Hq, D).

    Raises:
        ValueError: cu_seqlens that do not divide the R rows.
    """
    return torch.ops.patchrec_fast.varlen_attention(query, key, value, cu_seqlens, scale, window)[0]


def _forward(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, scale: float, window: int | None
) -> tuple[Tensor, Tensor]:  # (R, Hq, D), (R, Hq)
    out = query.new_empty(query.shape)
    lse = query.new_empty(query.shape[:2], dtype=_lse_dtype(query))
    groups = key.shape[1]
    for rows in _segments(cu_seqlens, query.shape[0]):
        q, k, v = _heads(query[rows], groups), *_shared(key[rows], value[rows], query.shape[1])
        mask = _window_mask(q, window)
        made, kept = _flash(q, k, v, 0.0, mask is None, attn_mask=mask, scale=scale)
        _heads(out[rows], groups).copy_(made)
        lse[rows].unflatten(1, (groups, -1)).copy_(kept.permute(2, 0, 1))
    return out, lse


def _backward(
    grad: Tensor,  # (R, Hq, D)
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    dquery, dkey, dvalue = (x.new_empty(x.shape) for x in (query, key, value))
    groups = key.shape[1]
    for rows in _segments(cu_seqlens, query.shape[0]):
        q, k, v = _heads(query[rows], groups), *_shared(key[rows], value[rows], query.shape[1])
        mask = _window_mask(q, window)
        dq, dk, dv = _flash_backward(
            _heads(grad[rows], groups),
            q,
            k,
            v,
            _heads(out[rows], groups),
            lse[rows].unflatten(1, (groups, -1)).permute(1, 2, 0),
            0.0,
            mask is None,
            attn_mask=mask,
            scale=scale,
        )
        _heads(dquery[rows], groups).copy_(dq)
        dkey[rows].copy_(dk.sum(1).transpose(0, 1))  # over the queries that share the head
        dvalue[rows].copy_(dv.sum(1).transpose(0, 1))
    return dquery, dkey, dvalue


def _segments(cu_seqlens: Tensor, rows: int) -> Iterator[slice]:
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != rows or any(b < a for a, b in pairwise(bounds)):
        raise ValueError(f"cu_seqlens must rise from 0 to the {rows} rows, got {bounds}")
    return (slice(a, b) for a, b in pairwise(bounds) if b > a)


def _heads(x: Tensor, groups: int) -> Tensor:
    """(n, Hq, D) as (Hk, Hq / Hk, n, D), a view: the queries of one key head side by side."""
    return x.unflatten(1, (groups, -1)).permute(1, 2, 0, 3)


def _shared(key: Tensor, value: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """(n, Hk, D) as (Hk, Hq / Hk, n, D) without a copy: stride 0 over the queries that share a head."""
    groups = key.shape[1]
    shape = (groups, heads // groups, key.shape[0], key.shape[2])
    return key.transpose(0, 1).unsqueeze(1).expand(shape), value.transpose(0, 1).unsqueeze(1).expand(shape)


def _window_mask(query: Tensor, window: int | None) -> Tensor | None:
    """(n, n) of 0 and -inf, or None where plain causality says it all."""
    n = query.shape[2]
    if window is None or n <= window:
        return None
    row = torch.arange(n)
    back = row.unsqueeze(1) - row  # how far before the row
    return query.new_zeros(n, n).masked_fill_((back < 0) | (back >= window), -torch.inf)


def _lse_dtype(query: Tensor) -> torch.dtype:
    return torch.float64 if query.dtype == torch.float64 else torch.float32


_LIBRARY.impl("varlen_attention", _forward, "CPU")
_LIBRARY.impl("varlen_attention_backward", _backward, "CPU")


@torch.library.register_fake("patchrec_fast::varlen_attention")
def _(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, scale: float, window: int | None
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
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, cu_seqlens, ctx.scale, ctx.window = inputs
    ctx.save_for_backward(query, key, value, *output, cu_seqlens)
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    *saved, cu_seqlens = ctx.saved_tensors
    made = torch.ops.patchrec_fast.varlen_attention_backward(grad, *saved, cu_seqlens, ctx.scale, ctx.window)
    return *made, None, None, None


torch.library.register_autograd("patchrec_fast::varlen_attention", _gradient, setup_context=_save)
