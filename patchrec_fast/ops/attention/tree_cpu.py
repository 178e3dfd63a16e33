# SPDX-License-Identifier: Apache-2.0
"""`tree_attention` on the CPU: each row's path and its user's prompt, merged by their log-sum-exps.

A prompt is computed for all rows of its user at once, on slices of keys and values, by the kernels of
`segment_attention`: the queries of one key head are one run of queries. Paths are short and all different, so what
lies on them is gathered, for some rows at a time.
"""

from itertools import pairwise

import torch
from torch import Tensor

from .cpu import Options, kernels, merge, product

_GATHERED = 1 << 24  # numbers of keys on paths at once: 64 MiB of float32


def tree_attention(
    query: Tensor,  # (n, Hq, D)
    key: Tensor,  # (R, Hk, D)
    value: Tensor,
    cu_seqlens: Tensor,  # (B + 1,) int32
    tree_key: Tensor,  # (S, Hk, D)
    tree_value: Tensor,
    path: Tensor,  # (n, A) int64
    cu_rows: Tensor,  # (B + 1,) int32
    *,
    max_rows: int,
    max_seqlen: int,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:  # (n, Hq, D)
    """As `patchrec_fast.ops.attention.tree`, in any dtype that torch's flash kernel takes; merged in float32, or in
    float64. The bounds are not needed."""
    rows, prompts = cu_rows.tolist(), cu_seqlens.tolist()
    heads, wide = key.shape[1], torch.promote_types(query.dtype, torch.float32)
    dtype = query.dtype if query.dtype == value.dtype and softcap is None else wide
    attend, _ = kernels(query, value, softcap)
    q = query[: rows[-1]].unflatten(1, (heads, -1))  # (m, Hk, G, D), the rows that are somebody's
    path = path[: rows[-1]]
    path = path.masked_fill((path < 0) | (path >= len(tree_key)), -1)
    depth = _depth(path)
    out, lse = _on_paths(q, tree_key, tree_value, path, depth, scale, window, softcap)
    for (first, last), (start, stop) in zip(pairwise(rows), pairwise(prompts), strict=True):
        mine, mask, blind = slice(first, last), None, None
        if first == last or start == stop:
            continue
        if window is not None:
            nearest = stop + depth[mine] - window + 1  # the first row that each sees
            start = min(max(start, int(nearest.min())), stop - 1)
            mask, blind = _mask(q, nearest, start, stop), nearest >= stop
        run = q[mine].permute(1, 0, 2, 3).flatten(1, 2).unsqueeze(0)  # (1, Hk, rows * G, D)
        k, v = (x[start:stop].transpose(0, 1).unsqueeze(0).to(dtype) for x in (key, value))
        mean, total = attend(run.to(dtype), k, v, Options(mask, False, scale, softcap))
        mean, total = (x[0].unflatten(1, (last - first, -1)).transpose(0, 1) for x in (mean, total))
        if blind is not None:  # the kernel says 0 of a row that sees nothing
            total = total.masked_fill(blind[:, None, None], -torch.inf)
        merge(out[mine], lse[mine], mean.to(out.dtype), total)
    made = value.new_zeros(query.shape)
    made[: rows[-1]] = out.flatten(1, 2)
    return made


def _depth(path: Tensor) -> Tensor:
    """(m,) int64: each row's own place on its path."""
    return torch.where(path >= 0, torch.arange(path.shape[1]), -1).amax(1)


def _mask(query: Tensor, nearest: Tensor, start: int, stop: int) -> Tensor | None:
    """(rows * G, S) of 0 and -inf, None where all is seen; a row that would see nothing sees all."""
    if int(nearest.max()) <= start:
        return None
    hidden = (torch.arange(start, stop) < nearest.unsqueeze(1)) & (nearest < stop).unsqueeze(1)  # (rows, S)
    hidden = hidden.repeat_interleave(query.shape[2], 0)
    return query.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)


def _on_paths(
    query: Tensor,  # (m, Hk, G, D)
    tree_key: Tensor,
    tree_value: Tensor,
    path: Tensor,
    depth: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:  # (m, Hk, G, D), (m, Hk, G)
    """Over the rows on the path, itself included; in at least float32."""
    seen = path >= 0
    if window is not None:
        seen &= depth.unsqueeze(1) - torch.arange(path.shape[1]) < window
    # Padding reads a row that is on the path anyway: another user's may be NaN, which a weight of 0 would let through.
    at = torch.where(path >= 0, path, path.amax(1, keepdim=True)).clamp_(min=0)
    wide = torch.promote_types(query.dtype, torch.float32)
    out = query.new_empty(query.shape, dtype=wide)
    lse = query.new_empty(query.shape[:3], dtype=wide)
    some = max(1, _GATHERED // max(1, path.shape[1] * tree_key[:1].numel()))
    for first in range(0, len(path), some):
        part = slice(first, first + some)
        key, value = (x[at[part]].to(wide).transpose(1, 2) for x in (tree_key, tree_value))  # (some, Hk, A, D)
        logits = product(query[part].to(wide), key.mT) * scale  # (some, Hk, G, A)
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        logits.masked_fill_(~seen[part, None, None], -torch.inf)
        lse[part] = logits.logsumexp(-1)
        out[part] = product(logits.softmax(-1), value)
    return out, lse
