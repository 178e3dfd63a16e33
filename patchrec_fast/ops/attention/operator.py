# SPDX-License-Identifier: Apache-2.0
"""A schedule's `segment_attention` as an operator: the forest is tensors, so compilers see no lengths and no loops."""

from typing import Any

import torch
from torch import Tensor

from ..schemas import LIBRARY
from . import cpu

for _device in ("CPU", "CUDA"):
    LIBRARY.impl("segment_attention", cpu.forward, _device)
    LIBRARY.impl("segment_attention_backward", cpu.backward, _device)


@torch.library.register_fake("patchrec_fast::segment_attention")
def _(query: Tensor, key: Tensor, value: Tensor, *forest: Any) -> tuple[Tensor, Tensor]:
    out = query.new_empty(*query.shape[:2], value.shape[2])
    return out, query.new_empty(query.shape[:2], dtype=torch.promote_types(query.dtype, torch.float32))


@torch.library.register_fake("patchrec_fast::segment_attention_backward")
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, *forest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, cu_seqlens, parent, visible, *ctx.options = inputs
    ctx.save_for_backward(query, key, value, *output, cu_seqlens, parent, visible)
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    made = torch.ops.patchrec_fast.segment_attention_backward(grad, *ctx.saved_tensors, *ctx.options)
    return *made, None, None, None, None, None, None


def _no_second(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("segment_attention has no second derivative; use impl='reference'")


torch.library.register_autograd("patchrec_fast::segment_attention", _gradient, setup_context=_save)
torch.library.register_autograd("patchrec_fast::segment_attention_backward", _no_second)
