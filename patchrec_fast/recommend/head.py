# SPDX-License-Identifier: Apache-2.0
"""The language-model head taken out of the model's forward, so that it runs on the rows and tokens that matter.

The vocabulary is large: a row of the head costs as much as many rows of a small model. A decoder therefore keeps
hidden states, and asks for logits later, of live branches only, and of title tokens only where that is enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..hf import head as losses
from ..hf.modules import keeps_forward, serves

_CHUNK = 1 << 24  # logits at once: 64 MiB of float32


class Head:
    """What follows the last hidden state: the output embedding, and the scaling or cap that the configuration names.

    Attributes:
        size: V, the width of the logits.
    """

    def __init__(self, model: Any) -> None:
        """Take the head and check it against the model's own logits of one token.

        Raises:
            TypeError: the model has no output embedding.
            ValueError: its logits are not this head's: a step after the output embedding that is not known here.
        """
        module = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        if not isinstance(module, nn.Module):
            raise TypeError(f"model: {type(model).__name__} has no output embeddings, expected a causal language model")
        config = model.config.get_text_config()
        self._module: Any = module
        self._apply: Callable[[Tensor], Tensor] = module
        self._rest: tuple[Tensor, float] | None = None
        self._cap: float | None = getattr(config, "final_logit_softcapping", None)
        self._scale: float = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        self.size = 1
        self.size = _check(model, self)

    @contextmanager
    def lifted(self) -> Iterator[list[Tensor]]:
        """Inside, the model's forward skips the head, and appends what the head would have got to the list given."""
        kept: list[Tensor] = []

        def keep(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            kept.append(hidden)
            return hidden[..., :1]  # what the model does with logits, it does with these; nobody looks

        own = vars(self._module).get("forward")
        self._module.forward = keep
        try:
            yield kept
        finally:
            del self._module.forward
            if own is not None:
                self._module.forward = own

    def logits(self, hidden: Tensor) -> Iterator[Tensor]:
        """Of (n, d) hidden states: (m, size) float32 logits, some rows at a time, in order."""
        for rows in hidden.split(max(1, _CHUNK // self.size)):
            logits = self._apply(rows).float()
            if self._scale != 1:
                logits = logits * self._scale
            yield logits if self._cap is None else self._cap * torch.tanh(logits / self._cap)

    def subset(self, tokens: Tensor) -> Head:
        """A head of these tokens alone, (U,); one that is not a plain linear layer computes all and selects."""
        part = object.__new__(Head)
        part._module, part._scale, part._cap, part._rest = self._module, self._scale, self._cap, None
        part.size = len(tokens)
        module = self._module
        if not _is_plain(module):
            part._apply = lambda hidden: module(hidden)[..., tokens]
            return part
        weight, bias = module.weight[tokens], None if module.bias is None else module.bias[tokens]
        part._apply = lambda hidden: F.linear(hidden, weight, bias)
        others = self.size - len(tokens)
        if others and bias is None and self._cap is None:
            mean = (module.weight.sum(0, dtype=torch.float32) - weight.sum(0, dtype=torch.float32)) / others
            part._rest = mean * self._scale, math.log(others)
        return part

    def rest(self, hidden: Tensor) -> Tensor | None:
        """Of a subset: (n,) float32, at most the log-sum-exp of the logits of all tokens that are not in it.

        The mean of exp is at least exp of the mean (Jensen). None where the logits are not linear in the embedding.
        """
        if self._rest is None:
            return None
        mean, log_count = self._rest
        return hidden.float() @ mean + log_count


def _is_plain(module: nn.Module) -> bool:
    """Whether a call is exactly a product with a weight that is whole; attached or not."""
    if not keeps_forward(module, nn.Linear) and not serves(module, losses._head):
        return False
    return type(module.weight) in (Tensor, nn.Parameter) and not module._forward_hooks


@torch.no_grad()
def _check(model: Any, head: Head) -> int:
    """The width of the model's logits, having compared them."""
    token = torch.zeros(1, 1, dtype=torch.int64, device=next(model.parameters()).device)
    kept: list[Tensor] = []
    hook = head._module.register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    try:
        theirs = model(input_ids=token, use_cache=False).logits[0].float()  # (1, V)
    finally:
        hook.remove()
    ours = next(head.logits(kept[0][0])) if kept else torch.full_like(theirs, torch.nan)
    if not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-3):
        raise ValueError(
            f"model: {type(model).__name__} changes its logits after the output embedding in a way not known here"
        )
    return theirs.shape[1]
