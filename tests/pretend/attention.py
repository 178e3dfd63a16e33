# SPDX-License-Identifier: Apache-2.0
"""torch's own attention kernels on the pretended device, by their documentation: what they take, what they give.

Both sum in float32, on the CPU; their gradients are those of that sum. What a block mask leaves out is left out here.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .device import host, launch


def install() -> None:
    """For the rest of the process, after `device.install`."""
    from torch.nn.attention import varlen

    varlen._varlen_attn.register_kernel("cuda")(_flash)
    varlen._varlen_attn_backward.register_kernel("cuda")(_flash_backward)


def _flash(
    query: Tensor,  # (R, Hq, D)
    key: Tensor,  # (S, Hk, D)
    value: Tensor,
    cu_seq_q: Tensor,  # (B + 1,) int32
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
    scale: float | None = None,
    window_size: list[int] | None = None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k)
    masks = _flash_masks(cu_seq_q, cu_seq_k, is_causal, window_size)
    out = _launched("flash_attention", (query, key, value), masks, scale)
    lse = torch.empty(query.shape[1], query.shape[0], device=query.device)
    return out, lse, torch.empty(2, dtype=torch.uint64, device=query.device)


def _flash_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool,
    rng_state: Tensor,
    scale: float | None = None,
    window_size: list[int] | None = None,
) -> tuple[Tensor, ...]:
    masks = _flash_masks(cu_seq_q, cu_seq_k, is_causal, window_size)
    return _launched_backward("flash_attention_backward", grad, (query, key, value), masks, scale)


def _check(query: Tensor, key: Tensor, value: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int) -> None:
    """What the kernel asks for, or would read wrong."""
    assert query.dtype == key.dtype == value.dtype, "one dtype"
    assert query.dtype in (torch.float16, torch.bfloat16), f"float16 or bfloat16, got {query.dtype}"
    assert query.shape[-1] % 8 == 0, "heads of a multiple of 8"
    assert query.shape[-1] <= 256, "heads of up to 256"
    for each in (query, key, value):
        assert each.device.type == "cuda", "on the device"
        assert each.stride(-1) == 1, "adjacent columns"
        assert all(stride * each.element_size() % 16 == 0 for stride in each.stride()[:-1]), "rows at 16 bytes"
    for each, rows, longest in ((cu_q, len(query), max_q), (cu_k, len(key), max_k)):
        assert each.device.type == "cuda", "cu_seqlens on the device"
        assert each.dtype == torch.int32, "cu_seqlens int32"
        assert each.is_contiguous(), "cu_seqlens contiguous"
        assert type(longest) is int, "the longest on the host"
        bounds = host(each).tolist()
        assert bounds[0] == 0, "from the first row"
        assert bounds[-1] == rows, "to the last row"
        assert all(0 <= b - a <= longest for a, b in pairwise(bounds)), "none longer than said"


def _flash_masks(
    cu_seq_q: Tensor, cu_seq_k: Tensor, is_causal: bool, window_size: list[int] | None
) -> Callable[[], Tensor]:
    """(R, S) bool on the CPU: a sequence's last query is beside its last key, by causality and by window."""
    before, after = window_size or (-1, -1)
    after = 0 if is_causal else after

    def seen() -> Tensor:
        blocks = []
        for (a, b), (c, d) in zip(pairwise(host(cu_seq_q).tolist()), pairwise(host(cu_seq_k).tolist()), strict=True):
            ahead = torch.arange(d - c) - (torch.arange(b - a) + (d - c) - (b - a)).unsqueeze(1)  # (n, m)
            blocks.append(((ahead <= after) | (after < 0)) & ((ahead >= -before) | (before < 0)))
        return torch.block_diag(*blocks).bool()

    return seen


def flex_attention(
    query: Tensor,  # (1, Hq, R, D)
    key: Tensor,  # (1, Hk, S, D)
    value: Tensor,
    score_mod: Callable[..., Tensor] | None = None,
    block_mask: Any = None,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:  # (1, Hq, R, Dv)
    """The compiled function of that name."""
    if query.shape[1] != key.shape[1] and not enable_gqa:
        raise ValueError("Expect query and key/value to have the same number of heads but enable_gqa=False")
    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
    row, column = (torch.arange(len(x), device=x.device) for x in (q, k))
    nothing = torch.zeros((), dtype=torch.int64, device=query.device)
    rule = block_mask.mask_mod(nothing, nothing, row.unsqueeze(1), column)  # (R, S); the kernel asks it where in part

    def seen() -> Tensor:
        part, full = (
            _blocks(*(host(each)[0, 0].tolist() for each in pair), block_mask.BLOCK_SIZE, rule.shape)
            for pair in (
                (block_mask.kv_num_blocks, block_mask.kv_indices),
                (block_mask.full_kv_num_blocks, block_mask.full_kv_indices),
            )
        )
        return part & host(rule) | full

    return _Flex.apply(q, k, v, seen, scale, score_mod).transpose(0, 1).unsqueeze(0)


def _blocks(counts: list[int], indices: list[list[int]], size: tuple[int, int], shape: torch.Size) -> Tensor:
    """Bool of that shape, set in the blocks that are listed."""
    found = torch.zeros(shape, dtype=torch.bool)
    for row, (count, listed) in enumerate(zip(counts, indices, strict=True)):
        for column in listed[:count]:
            found[row * size[0] : (row + 1) * size[0], column * size[1] : (column + 1) * size[1]] = True
    return found


class _Flex(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.rest = rest
        return _launched("flex_attention", (query, key, value), *rest)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        made = _launched_backward("flex_attention_backward", grad, ctx.saved_tensors, *ctx.rest)
        return *made, None, None, None


Inputs = tuple[Tensor, Tensor, Tensor]


def _launched(name: str, inputs: Inputs, seen: Callable[[], Tensor], *rest: Any) -> Tensor:
    query, _, value = inputs
    out = query.new_empty(*query.shape[:2], value.shape[2])
    launch(name, lambda: host(out).copy_(_attention(*map(host, inputs), seen(), *rest)), [out])
    return out


def _launched_backward(
    name: str, grad: Tensor, inputs: Inputs, seen: Callable[[], Tensor], *rest: Any
) -> tuple[Tensor, ...]:
    made = [torch.empty_like(each, memory_format=torch.contiguous_format) for each in inputs]

    def work() -> None:
        copies = [host(each).clone().requires_grad_() for each in inputs]
        gradients = torch.autograd.grad(_attention(*copies, seen(), *rest), copies, host(grad))
        for mine, theirs in zip(made, gradients, strict=True):
            host(mine).copy_(theirs)

    def aside() -> None:  # where an operator's body runs, autograd is left out
        with ThreadPoolExecutor(1) as thread:
            thread.submit(work).result()

    launch(name, aside, made)
    return tuple(made)


def _attention(
    query: Tensor,  # (R, Hq, D)
    key: Tensor,  # (S, Hk, D)
    value: Tensor,  # (S, Hk, Dv)
    seen: Tensor,  # (R, S)
    scale: float | None,
    score_mod: Callable[..., Tensor] | None = None,
) -> Tensor:  # (R, Hq, Dv)
    group = query.shape[1] // key.shape[1]
    q, k, v = query.float(), *(each.float().repeat_interleave(group, 1) for each in (key, value))
    logits = torch.einsum("qhd,khd->hqk", q, k) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if score_mod is not None:
        nothing = torch.zeros((), dtype=torch.int64)
        logits = score_mod(logits, nothing, nothing, nothing, nothing)  # of a score alone
    weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v).to(query.dtype)
