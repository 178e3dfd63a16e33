# SPDX-License-Identifier: Apache-2.0
"""When a module of the model may run a forward of ours in place of its class's."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as _global_hooks

# Hooks of these packages gather, release, mark or perturb what a module gives, whatever its rows mean.
_KNOWN_HOOKS = {"torch", "deepspeed", "transformers"}


def inner_of(model: Any) -> Any:
    """transformers' model, inside PEFT's."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def unwrapped(model: Any) -> Any:
    """The module that `torch.compile` or DistributedDataParallel was given: the same weights, in ordinary calls."""
    while True:
        if isinstance(model, nn.Module) and "_orig_mod" in model._modules:
            model = model._modules["_orig_mod"]
        elif isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def restore(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Takes our forward off a module that has it still."""
    if vars(module).get("forward") == forward:  # who has wrapped it since (accelerate, TRL) still calls it: harmless
        del module.forward


def keeps_forward(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a call of the module is its class `kind`'s own forward, whatever hooks are around it.

    By the forward, not the class's name: FSDP2 makes a subclass without one, Gemma and PEFT have their own.
    """
    return isinstance(module, kind) and type(module).forward is kind.forward and "forward" not in vars(module)


def serves(module: nn.Module, forward: Callable[..., Any]) -> bool:
    """Whether the module has our forward still, its weight will be whole in it, and no hook reads what it gives."""
    if getattr(vars(module).get("forward"), "__func__", None) is not forward:
        return False
    hooks = [*module._forward_hooks.values(), *_global_hooks._global_forward_hooks.values()]
    if any(getattr(hook, "__module__", "").partition(".")[0] not in _KNOWN_HOOKS for hook in hooks):
        return False
    if type(module.weight) in (Tensor, nn.Parameter):
        return True
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)  # its hooks gather the DTensor; tensor parallelism leaves it one
