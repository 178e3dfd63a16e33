# SPDX-License-Identifier: Apache-2.0
"""What runs on the pretended device that torch does not dispatch: Triton's programs, by its interpreter; torch's flash
attention, by its documentation; compiled functions, as they are."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from . import device
from .device import MULTIPROCESSORS, host, launch


def install() -> None:
    """For the rest of the process, after `device.install`. Needs TRITON_INTERPRET=1."""
    _triton()
    _flash_attention()
    torch.compile = lambda model=None, **options: model if model is not None else lambda function: function


def _triton() -> None:
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.interpreter import GridExecutor

    run = GridExecutor.__call__

    def call(executor: Any, *args: Any, **options: Any) -> None:
        tensors = [each for each in (*args, *options.values()) if isinstance(each, Tensor)]
        if any(each.device.type != "cuda" for each in tensors):
            raise ValueError(f"{executor.fn.__name__}: Pointer argument cannot be accessed from Triton (cpu tensor?)")
        x, *others = executor.grid
        if not 0 < x < 2**31 or not all(0 < size < 2**16 for size in others):
            raise RuntimeError(f"Triton Error [CUDA]: invalid argument: {executor.fn.__name__} on grid {executor.grid}")
        seen = [host(each) for each in args], {name: host(each) for name, each in options.items()}
        launch(executor.fn.__name__, lambda: run(executor, *seen[0], **seen[1]), tensors)

    GridExecutor.__call__ = call
    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", 90, 32),
            get_current_device=lambda: 0,
            utils=SimpleNamespace(get_device_properties=lambda index: {"multiprocessor_count": MULTIPROCESSORS}),
        )
    )


def _flash_attention() -> None:
    from torch.nn.attention import varlen

    varlen._varlen_attn.register_kernel("cuda")(_forward)
    varlen._varlen_attn_backward.register_kernel("cuda")(_backward)


def _forward(
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
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    tensors = [host(each) for each in (query, key, value, cu_seq_q, cu_seq_k)]

    def work() -> None:
        host(out).copy_(_attention(*tensors, is_causal, scale, window_size))

    launch("flash_attention", work, [out])
    lse = torch.empty(query.shape[1], query.shape[0], device=query.device)
    return out, lse, torch.empty(2, dtype=torch.uint64, device=query.device)


def _backward(
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
) -> tuple[Tensor, Tensor, Tensor]:
    made = [torch.empty_like(each, memory_format=torch.contiguous_format) for each in (query, key, value)]
    tensors = [host(each) for each in (query, key, value, cu_seq_q, cu_seq_k)]
    upstream = host(grad)

    def work() -> None:
        with torch.enable_grad():
            inputs = [each.clone().requires_grad_() for each in tensors[:3]]
            again = _attention(*inputs, *tensors[3:], is_causal, scale, window_size)
            gradients = torch.autograd.grad(again, inputs, upstream)
        for mine, theirs in zip(made, gradients, strict=True):
            host(mine).copy_(theirs)

    launch("flash_attention_backward", work, made)
    return made[0], made[1], made[2]


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


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    is_causal: bool,
    scale: float | None,
    window_size: list[int] | None,
) -> Tensor:
    """On the CPU, summed in float32. Causality and window are aligned to each sequence's last row."""
    group = query.shape[1] // key.shape[1]
    before, after = window_size or (-1, -1)
    after = 0 if is_causal else after
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    out = []
    for (a, b), (c, d) in zip(pairwise(cu_seq_q.tolist()), pairwise(cu_seq_k.tolist()), strict=True):
        q, k, v = query[a:b].float(), *(each[c:d].float().repeat_interleave(group, 1) for each in (key, value))
        ahead = torch.arange(d - c) - (torch.arange(b - a) + (d - c) - (b - a)).unsqueeze(1)  # (n, m)
        seen = (ahead <= after) | (after < 0)
        seen &= (ahead >= -before) | (before < 0)
        logits = torch.einsum("qhd,khd->hqk", q, k) * scale
        out.append(torch.einsum("hqk,khd->qhd", logits.masked_fill(~seen, -torch.inf).softmax(-1), v))
    return torch.cat(out).to(query.dtype)
