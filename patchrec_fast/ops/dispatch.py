# SPDX-License-Identifier: Apache-2.0
"""Who else must see a call: whether torch's dispatcher may be passed by, and what kernels cannot read."""

from types import NoneType

import torch
from torch import Tensor

PLAIN = (Tensor, torch.nn.Parameter, NoneType)


def dispatcher_needed(*tensors: Tensor | None) -> bool:
    """Whether something must see the registered op: a compiler, a tracer, a mode, a transform, a tensor subclass.

    Otherwise its body is called as it is: with cold caches, as within a training step, the dispatcher's Python layers
    cost a noticeable part of a small forward.
    """
    return (
        torch.compiler.is_compiling()
        or any(type(x) not in PLAIN for x in tensors)
        or torch._C._len_torch_dispatch_stack() > 0
        or transformed()
    )


def transformed() -> bool:
    """Whether a torch.func transform, torch.jit.trace or forward-mode AD is at work."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or forward_ad()
    )


def forward_ad() -> bool:
    """Whether tensors may carry tangents."""
    return torch.autograd.forward_ad._current_level >= 0
