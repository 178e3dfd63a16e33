# SPDX-License-Identifier: Apache-2.0
"""`tree_attention`, defined: one softmax over all prompts and the path, with what a row does not see masked."""

import torch
from torch import Tensor


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
    """As `patchrec_fast.ops.attention.tree`, in any floating dtype; accumulates in at least float32.

    Each row is multiplied with the rows of all prompts, so the work is n * R, and a NaN among one user's values
    reaches all users. The bounds are not needed. Shapes alone decide what runs: no value is read on the host.
    """
    users, heads = cu_rows.shape[0] - 1, key.shape[1]
    user = _segments(cu_rows, path.shape[0])  # (n,)
    owner = _segments(cu_seqlens, key.shape[0])  # (R,)
    seen_path = (path >= 0) & (path < tree_key.shape[0]) & (user < users).unsqueeze(1)  # (n, A)
    seen_prompt = (user.unsqueeze(1) == owner) & (owner < users)  # (n, R)
    if window is not None:
        depth = torch.arange(path.shape[1], device=path.device)
        own_depth = torch.where(seen_path, depth, -1).amax(1, keepdim=True)  # (n, 1)
        seen_path &= own_depth - depth < window
        end = cu_seqlens[(user + 1).clamp(max=users)].unsqueeze(1)
        seen_prompt &= end + own_depth - torch.arange(key.shape[0], device=key.device) < window

    at = path.clamp(0, tree_key.shape[0] - 1)
    q = query.unflatten(1, (heads, -1))  # (n, Hk, G, D)
    on_prompt = _einsum("nkgd,rkd->nkgr", q, key)
    on_path = _einsum("nkgd,nakd->nkga", q, tree_key[at])
    logits = torch.cat([on_prompt, on_path], -1) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    seen = torch.cat([seen_prompt, seen_path], 1)[:, None, None]  # (n, 1, 1, R + A)
    weights = logits.masked_fill(~seen, -torch.inf).softmax(-1).masked_fill(~seen, 0.0)

    # A weight of zero would still let a NaN through.
    prompts = value.masked_fill((owner == users)[:, None, None], 0.0)  # (R, Hk, D)
    paths = tree_value[at].masked_fill(~seen_path[:, :, None, None], 0.0)  # (n, A, Hk, D)
    of_prompt, of_path = weights.split([key.shape[0], path.shape[1]], -1)
    out = _einsum("nkgr,rkd->nkgd", of_prompt, prompts) + _einsum("nkga,nakd->nkgd", of_path, paths)
    return out.flatten(1, 2).to(value.dtype)


def _segments(offsets: Tensor, size: int) -> Tensor:
    """(B + 1,) -> (size,): the segment of each element, B behind the last."""
    elements = torch.arange(size, dtype=offsets.dtype, device=offsets.device)
    return torch.searchsorted(offsets[1:].contiguous(), elements, right=True)


def _einsum(equation: str, a: Tensor, b: Tensor) -> Tensor:
    """In at least float32, under autocast too."""
    wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    with torch.autocast(a.device.type, enabled=False):
        return torch.einsum(equation, a.to(wide), b.to(wide))
