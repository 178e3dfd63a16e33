# SPDX-License-Identifier: Apache-2.0
"""The language-model head taken out of the model's forward, so that it runs on the rows and tokens that matter.

The vocabulary is large: a row of the head costs as much as many rows of a small model. A decoder therefore keeps
hidden states, and asks for logits later, of live branches only, and of title tokens only where that is enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..hf.modules import keeps_forward, serves
from ..hf.supervised import head_forward
from ..ops.log_sum_exp import finished, log_sum_exp

_CHUNK = 1 << 24  # logits at once: 64 MiB of float32
_GPU_CHUNK = 1 << 26  # on a GPU, where only their sum is wanted: 523 rows of Llama 3's vocabulary, 128 MiB of bfloat16
_ALIGN = 16  # a row of logits takes a multiple of so many: products want rows that begin at 16 bytes, and Triton's
# launches see no smaller multiple
_BLOCK = 4096  # tokens at once on a CPU, where only a sum over all is wanted
_taken: ContextVar[list[Tensor] | None] = ContextVar("taken", default=None)  # what lifted calls of this thread keep


class LMHead:
    """What follows the last hidden state: the output embedding, and the scaling or cap that the configuration names.

    Attributes:
        size: V, the width of the logits.
    """

    _others = 0  # of a subset: how many tokens are not in it, where `rest` can speak for them
    _weight: Tensor
    _mean: Tensor | None = None

    def __init__(self, model: Any) -> None:
        """Take the head and check it against the model's own logits of one token.

        Raises:
            TypeError: the model has no output embedding.
            ValueError: its logits are not this head's: a step after the output embedding that is not known here; or
                they are not finite.
        """
        module = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        if not isinstance(module, nn.Module):
            raise TypeError(f"model: {type(model).__name__} has no output embeddings, expected a causal language model")
        config = model.config.get_text_config()
        self._module: Any = module
        self._apply: Callable[[Tensor], Tensor] = partial(_called, module)
        self._cap: float | None = getattr(config, "final_logit_softcapping", None)
        self._scale: float = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        self.size = 1
        self.size = _check(model, self)

    @property
    def _plain(self) -> bool:
        """Whether the logits are a product with a weight that is whole, as the module is now; attached or not."""
        module = self._module
        if not keeps_forward(module, nn.Linear) and not serves(module, head_forward):
            return False
        return type(module.weight) in (Tensor, nn.Parameter) and not module._forward_hooks

    @contextmanager
    def lifted(self) -> Iterator[list[Tensor]]:
        """Inside, the model's forward skips the head, and appends what the head would have got to the list given.

        So do calls of this thread alone; other threads' have their logits. One thread at a time is inside
        (`patchrec_fast.hf.lock.exclusive`).
        """
        own = vars(self._module).get("forward")
        theirs = self._module.forward

        def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            kept = _taken.get()
            if kept is None:
                made: Tensor = theirs(hidden, *args, **kwargs)
                return made
            kept.append(hidden)
            return hidden[..., :1]  # what the model does with logits, it does with these; nobody looks

        kept: list[Tensor] = []
        token = _taken.set(kept)
        try:
            vars(self._module)["forward"] = forward
            yield kept
        finally:
            _taken.reset(token)
            if own is None:
                vars(self._module).pop("forward", None)
            else:
                vars(self._module)["forward"] = own

    def logits(self, hidden: Tensor) -> Iterator[Tensor]:
        """Of (n, d) hidden states: (m, size) float32 logits, some rows at a time, in order."""
        for rows in hidden.split(max(1, _CHUNK // self.size)):
            yield self._finished(self._apply(rows))

    def log_sum_exp(self, hidden: Tensor) -> Tensor:
        """Of (n, d) hidden states: (n,) float32, over all logits; not of a subset."""
        if not self._plain:
            return torch.cat([logits.logsumexp(1) for logits in self.logits(hidden)])
        weight, bias = self._module.weight, self._module.bias
        hidden = hidden.to(weight.dtype)
        if hidden.device.type != "cpu":
            made = (_aligned_linear(rows, weight, bias) for rows in hidden.split(max(1, _GPU_CHUNK // self.size)))
            return torch.cat([log_sum_exp(logits, scale=self._scale, softcap=self._cap).float() for logits in made])
        # Of a block of tokens each: the logits stay in the cache, 1.9 times faster for 160 rows.
        parts = []
        for first in range(0, len(weight), _BLOCK):
            block = slice(first, first + _BLOCK)
            logits = F.linear(hidden, weight[block], None if bias is None else bias[block])
            parts.append(self._finished(logits).logsumexp(1))
        return torch.stack(parts).logsumexp(0)

    def _finished(self, logits: Tensor) -> Tensor:
        """The model's own logits, float32."""
        return finished(logits.float(), self._scale, self._cap)

    def subset(self, tokens: Tensor) -> LMHead:
        """A head of these tokens alone, (U,); one that is not a plain linear layer computes all and selects."""
        part = object.__new__(LMHead)
        part._module, part._scale, part._cap = self._module, self._scale, self._cap
        part.size = len(tokens)
        module = self._module
        if not self._plain:
            part._apply = lambda hidden: _called(module, hidden)[..., tokens]
            return part
        weight, bias = module.weight[tokens], None if module.bias is None else module.bias[tokens]
        part._apply = lambda hidden: F.linear(hidden.to(weight.dtype), weight, bias)
        part._others = self.size - len(tokens) if bias is None and self._cap is None else 0
        part._weight = weight
        return part

    def rest(self, hidden: Tensor) -> Tensor | None:
        """Of a subset: (n,) float32, at most the log-sum-exp of the logits of all tokens that are not in it.

        The mean of exp is at least exp of the mean (Jensen). None where the logits are not linear in the embedding.
        """
        if not self._others:
            return None
        if self._mean is None:  # reads the whole weight, so not before somebody asks
            total, mine = (weight.sum(0, dtype=torch.float32) for weight in (self._module.weight, self._weight))
            self._mean = (total - mine) * (self._scale / self._others)
        return hidden.float() @ self._mean + math.log(self._others)


def _aligned_linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` whose rows begin at 16 bytes, (n, V); not differentiable."""
    size = len(weight)
    out = hidden.new_empty(len(hidden), -(-size // _ALIGN) * _ALIGN)[:, :size]
    return torch.mm(hidden, weight.mT, out=out) if bias is None else torch.addmm(bias, hidden, weight.mT, out=out)


def _called(module: nn.Module, hidden: Tensor) -> Tensor:
    """The logits of a head of any kind. In autocast's precision hidden states and weights may differ in dtype."""
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.is_floating_point():
        hidden = hidden.to(weight.dtype)
    token = _taken.set(None)  # a call in the middle of a lifted one, by a hook
    try:
        made: Tensor = module(hidden)
    finally:
        _taken.reset(token)
    return made


@torch.no_grad()
def _check(model: Any, head: LMHead) -> int:
    """The width of the model's logits, having compared them with what its head gave in the same call."""
    token = torch.zeros(1, 1, dtype=torch.int64, device=next(model.parameters()).device)
    made: list[Tensor] = []
    mine = get_ident()

    def take(module: nn.Module, args: Any, out: Tensor) -> None:
        if get_ident() == mine:  # other threads may call the model too
            made.append(out)

    hook = head._module.register_forward_hook(take)
    try:
        theirs = model(input_ids=token, use_cache=False).logits[0].float()  # (1, V)
    finally:
        hook.remove()
    if not theirs.logsumexp(1).isfinite().all():
        raise ValueError(f"model: the logits of {type(model).__name__} are not finite (NaN or infinite)")
    ours = head._finished(made[0][0]) if made else torch.full_like(theirs, torch.nan)
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-3):
        raise ValueError(
            f"model: {type(model).__name__} changes its logits after the output embedding in a way not known here"
        )
    return theirs.shape[1]
