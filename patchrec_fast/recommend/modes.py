# SPDX-License-Identifier: Apache-2.0
"""The model as a call of `Recommender` needs it, and torch's modes as its code does; both afterwards as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..hf import configured
from ..hf.attach import attach, is_attached
from ..hf.masks import is_ours

_SAMPLE = 8  # numbers of each weight

Autocast = tuple[str, torch.dtype] | None
"""A type of devices and the dtype that a caller's autocast has for it."""


@contextmanager
def ready(model: Any) -> Iterator[None]:
    """The model attached and in evaluation mode; for who has it alone (`patchrec_fast.hf.lock.exclusive`).

    Raises:
        ValueError: it is attached with an attention that is not ours.
    """
    with ExitStack() as undo:
        if not is_attached(model):
            undo.callback(attach(model, configured.in_use(model.config) or "auto").detach)
        if not is_ours(model.config._attn_implementation):
            raise ValueError(
                f"model: this {type(model).__name__} is attached already, with attention "
                f"{model.config._attn_implementation!r}, which cannot read a trie; detach() it, or attach with 'auto'"
            )
        training = [module for module in model.modules() if module.training]
        if training:
            undo.callback(_train, training)
            model.eval()
        yield


def _train(modules: list[nn.Module]) -> None:
    for module in modules:
        module.training = True


@contextmanager
def own_modes(device: torch.device) -> Iterator[Autocast]:
    """No gradients, ordinary tensors, no autocast, and the CPU for tensors without a device: so what one call keeps
    serves the next, whatever modes that is made in. Gives the caller's autocast, for the calls of the model."""
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        theirs = None
        if torch.is_autocast_enabled(device.type):
            theirs = device.type, torch.get_autocast_dtype(device.type)
            stack.enter_context(torch.autocast(device.type, enabled=False))
        yield theirs


def called(model: Any, autocast: Autocast) -> Callable[..., Any]:
    """The model, in an autocast if there is one."""
    return model if autocast is None else partial(_autocast, model, autocast)


def _autocast(model: Any, autocast: tuple[str, torch.dtype], **inputs: Any) -> Any:
    # Without the cache: a CUDA graph outlives it, and weights that it holds would be without gradients.
    with torch.autocast(*autocast, cache_enabled=False):
        return model(**inputs)


def fingerprint(model: Any) -> tuple[Any, ...]:
    """Is another after most changes of the model's weights: steps, loading, `to`, and what writes all of a weight
    without torch's knowledge. It reads a few numbers of each."""
    whole = [each for each in model.parameters() if type(each) in (Tensor, nn.Parameter) and each.device.type != "meta"]
    some = [sampled(each.detach()) for each in whole if each.is_contiguous() and each.numel()]
    numbers = torch.cat(some).cpu().numpy().tobytes() if some else b""
    return *map(_mark, model.parameters()), numbers


def sampled(weight: Tensor) -> Tensor:
    """A few numbers of a contiguous tensor, evenly spread, float32."""
    return weight.view(-1)[:: max(1, weight.numel() // _SAMPLE)].float()


def _mark(parameter: Tensor) -> tuple[Any, ...]:
    version = 0 if parameter.is_inference() else parameter._version
    whole = type(parameter) in (Tensor, nn.Parameter) and parameter.device.type != "meta"
    return parameter.dtype, parameter.device, version, parameter.data_ptr() if whole else 0
