# SPDX-License-Identifier: Apache-2.0
"""`segment_attention` by the calls of a `Schedule`, merged by their log-sum-exps.

On the CPU the kernel is torch's own flash attention, on slices of keys and values. Where it cannot serve (capped
logits, values not as wide as queries, CUDA tensors that FlexAttention does not take) the same calls go to plain
PyTorch, some queries at a time. The backward gives each call the merged output and log-sum-exp, with which a call's
share of the gradient is its own.

In 16 bits, a batch whose segments have parents is computed in float32 and rounded once.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .schedule import Call, schedule

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

_LOGITS = 1 << 22  # of plain PyTorch at once


class Options(NamedTuple):
    """What a call of a kernel is told: a mask (n, S) of 0 and -inf, or whether the call is causal."""

    mask: Tensor | None
    causal: bool
    scale: float
    softcap: float | None


def forward(
    query: Tensor,  # (R, Hq, D)
    key: Tensor,  # (R, Hk, D)
    value: Tensor,  # (R, Hk, Dv)
    cu_seqlens: Tensor,  # (S + 1,)
    parent: Tensor,  # (S,)
    visible: Tensor,  # (S,)
    scale: float,
    window: int | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:  # (R, Hq, Dv), (R, Hq)
    """The attention, and the log-sum-exp of each row's logits in at least float32."""
    made = schedule(cu_seqlens, parent, visible, window)
    attend, _ = kernels(query, value, softcap)
    groups, dtype = key.shape[1], _dtype(query, bool(made.links) or attend is _plain)
    q, k, v = (_in(x, dtype) for x in (query, key, value))
    out = q.new_empty(*query.shape[:2], value.shape[2])
    lse = q.new_empty(query.shape[:2], dtype=torch.promote_types(dtype, torch.float32))
    for more, call in _calls(made.own, made.links, made.rows, query):
        options = Options(_mask(call, q), call.causal, scale, softcap)
        mean, sums = attend(_heads(q[call.queries], groups), *_shared(k, v, call, query.shape[1]), options)
        if call.blind:  # the kernel says 0 of a row that sees nothing
            assert call.bounds is not None
            sums = sums.masked_fill((call.bounds[1] <= call.bounds[0]).to(sums.device), -torch.inf)
        into, total = _heads(out[call.queries], groups), _per_head(lse[call.queries], groups)
        if more:
            merge(into, total, mean, sums)
        else:
            into.copy_(mean)
            total.copy_(sums)
    return out.to(query.dtype), lse


def backward(
    grad: Tensor,  # (R, Hq, Dv)
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    parent: Tensor,
    visible: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of query, key and value. What the calls add to a row is summed in the order of the schedule."""
    made = schedule(cu_seqlens, parent, visible, window)
    attend, attend_backward = kernels(query, value, softcap)
    groups, dtype = key.shape[1], _dtype(query, bool(made.links) or attend is _plain)
    g, q, k, v, o = (_in(x, dtype) for x in (grad, query, key, value, out))
    dquery, dkey, dvalue = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    for add, call in _calls(made.own, made.links, made.rows, query):
        rows, keys = call.queries, call.keys
        dq, dk, dv = attend_backward(
            _heads(g[rows], groups),
            _heads(q[rows], groups),
            *_shared(k, v, call, query.shape[1]),
            _heads(o[rows], groups),
            _per_head(lse[rows], groups),
            Options(_mask(call, q), call.causal, scale, softcap),
        )
        parts = (_heads(dquery[rows], groups), dq), (dkey[keys], _summed(dk)), (dvalue[keys], _summed(dv))
        for into, part in parts:
            into.add_(part) if add else into.copy_(part)
    return dquery.to(query.dtype), dkey.to(key.dtype), dvalue.to(value.dtype)


def _calls(own: list[Call], links: list[Call], rows: int, query: Tensor) -> Iterator[tuple[bool, Call]]:
    """All calls, and whether their rows have something already."""
    if query.shape[0] != rows:
        raise ValueError(f"segments: expected the {query.shape[0]} rows of query, got segments of {rows} rows")
    yield from ((False, call) for call in own)
    yield from ((True, call) for call in links)


def _dtype(query: Tensor, parts: bool) -> torch.dtype:
    """float32 for 16 bits, where parts meet; else query's."""
    return torch.promote_types(query.dtype, torch.float32) if parts else query.dtype


def _in(x: Tensor, dtype: torch.dtype) -> Tensor:
    """With adjacent columns, as the kernel reads them."""
    x = x.to(dtype)
    return x if x.stride(-1) == 1 else x.contiguous()


def _mask(call: Call, like: Tensor) -> Tensor | None:
    if call.bounds is None:
        return None
    low, high = call.bounds.to(like.device).unsqueeze(-1)
    column = torch.arange(call.keys.stop - call.keys.start, device=like.device)
    mask = like.new_zeros(len(low), len(column))
    return mask.masked_fill_((column < low) | (column >= high), -torch.inf)


def _heads(x: Tensor, groups: int) -> Tensor:
    """(n, Hq, D) as (Hk, Hq / Hk, n, D), a view: the queries of one key head side by side."""
    return x.unflatten(1, (groups, -1)).permute(1, 2, 0, 3)


def _per_head(x: Tensor, groups: int) -> Tensor:
    """(n, Hq) as (Hk, Hq / Hk, n), a view."""
    return x.unflatten(1, (groups, -1)).permute(1, 2, 0)


def _shared(key: Tensor, value: Tensor, call: Call, heads: int) -> tuple[Tensor, Tensor]:
    """The call's keys and values as (Hk, Hq / Hk, n, D), views: stride 0 over the queries that share a head."""
    k, v = (x[call.keys].transpose(0, 1).unsqueeze(1) for x in (key, value))
    shared = heads // key.shape[1]
    return k.expand(-1, shared, -1, -1), v.expand(-1, shared, -1, -1)


def _summed(x: Tensor) -> Tensor:
    """(Hk, Hq / Hk, n, D) as (n, Hk, D): over the queries that share a head."""
    return x.sum(1).transpose(0, 1)


Kernels = tuple[Callable[..., tuple[Tensor, Tensor]], Callable[..., tuple[Tensor, Tensor, Tensor]]]


def kernels(query: Tensor, value: Tensor, softcap: float | None) -> Kernels:
    """The one that serves, forward and backward, of (B, H, n, D) each."""
    plain = softcap is not None or query.shape[2] != value.shape[2] or query.device.type != "cpu"
    return (_plain, _plain_backward) if plain else (_fused, _fused_backward)


def merge(into: Tensor, total: Tensor, mean: Tensor, sums: Tensor) -> None:
    """Adds a call to what its rows have, in place: means of values (..., D), and log-sum-exps (...)."""
    into.lerp_(mean, torch.sigmoid(sums - total).unsqueeze(-1))
    total.copy_(torch.logaddexp(total, sums))


def _fused(q: Tensor, k: Tensor, v: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    made: tuple[Tensor, Tensor] = _flash(q, k, v, 0.0, options.causal, attn_mask=options.mask, scale=options.scale)
    return made


def _fused_backward(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    made: tuple[Tensor, Tensor, Tensor] = _flash_backward(
        g, q, k, v, out, lse, 0.0, options.causal, attn_mask=options.mask, scale=options.scale
    )
    return made


def _plain(q: Tensor, k: Tensor, v: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    means, sums = [], []
    for rows in _pieces(q, k):
        logits = _logits(q[:, :, rows], k, rows, options)
        lse = logits.logsumexp(-1)
        weights = (logits - lse.clamp(min=torch.finfo(lse.dtype).min).unsqueeze(-1)).exp_()
        means.append(product(weights, v))
        sums.append(lse)
    return torch.cat(means, 2), torch.cat(sums, 2)


def _plain_backward(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = torch.empty_like(q), k.new_zeros(k.shape), v.new_zeros(v.shape)
    delta = (g * out).sum(-1, keepdim=True)
    for rows in _pieces(q, k):
        logits = _logits(q[:, :, rows], k, rows, options)
        weights = (logits - lse[:, :, rows].unsqueeze(-1)).exp_()
        dv += product(weights.mT, g[:, :, rows])
        dlogits = weights * (product(g[:, :, rows], v.mT) - delta[:, :, rows]) * options.scale
        if options.softcap is not None:  # of a hidden key the weight is 0, and the logit not a number to be squared
            dlogits *= 1 - (logits.masked_fill(logits == -torch.inf, 0) / options.softcap).square_()
        dq[:, :, rows] = product(dlogits, k)
        dk += product(dlogits.mT, q[:, :, rows])
    return dq, dk, dv


def _pieces(q: Tensor, k: Tensor) -> Iterator[slice]:
    step = max(1, _LOGITS // (q.shape[0] * q.shape[1] * k.shape[2]))
    return (slice(start, start + step) for start in range(0, q.shape[2], step))


def _logits(q: Tensor, k: Tensor, rows: slice, options: Options) -> Tensor:
    """(Hk, Hq / Hk, n, S), capped; -inf where the key is hidden."""
    logits = product(q, k.mT) * options.scale
    if options.softcap is not None:
        logits = options.softcap * torch.tanh(logits / options.softcap)
    if options.mask is not None:
        logits += options.mask[rows]
    if options.causal:
        row = torch.arange(rows.start, rows.start + q.shape[2], device=q.device).unsqueeze(1)
        logits.masked_fill_(torch.arange(k.shape[2], device=q.device) > row, -torch.inf)
    return logits


def product(a: Tensor, b: Tensor) -> Tensor:
    """Under autocast too in the operands' dtype."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b
