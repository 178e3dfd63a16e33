# SPDX-License-Identifier: Apache-2.0
"""The language-model head taken out of the model's forward, so that it runs on the rows and tokens that matter.

The vocabulary is large: a row of the head costs as much as many rows of a small model. A decoder therefore keeps
hidden states, and asks for logits later, of live branches only, and of title tokens only where that is enough.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_CHUNK = 1 << 24  # logits at once: 64 MiB of float32


class Head:
    """What follows the last hidden state: the output embedding, and the scaling or cap that the configuration names.

    Attributes:
        size: V, the rows of the output embedding.
    """

    def __init__(self, model: Any) -> None:
        """Take the head and check it against the model's own logits of one token.

        Raises:
            TypeError: the model has no output embedding.
            ValueError: its logits are not this head's: a step after the output embedding that is not known here.
        """
        module = model.get_output_embeddings()
        if not isinstance(module, nn.Module):
            raise TypeError(f"model: {type(model).__name__} has no output embeddings, expected a causal language model")
        self._module = module
        config = model.config.get_text_config()
        self._cap: float | None = getattr(config, "final_logit_softcapping", None)
        self._scale: float = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        self.size: int = _check(model, self)

    @contextmanager
    def lifted(self) -> Iterator[list[Tensor]]:
        """Inside, the model's forward skips the head, and appends what the head would have got to the list given."""
        kept: list[Tensor] = []

        def keep(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            kept.append(hidden)
            return hidden[..., :1]  # what the model does with logits, it does with these; nobody looks

        own = vars(self._module).get("forward")
        self._module.forward = keep  # type: ignore[method-assign]
        try:
            yield kept
        finally:
            if own is None:
                del self._module.forward
            else:
                self._module.forward = own

    def subset(self, tokens: Tensor) -> "Head":
        """A head of these tokens alone, (U,); one that is not a plain linear layer computes all and selects."""
        part = object.__new__(Head)
        part._cap, part._scale, part.size = self._cap, self._scale, len(tokens)
        part._module = _Rows(self._module, tokens)
        return part

    def logits(self, hidden: Tensor) -> Iterator[Tensor]:
        """Of (n, d) hidden states: (m, size) float32 logits, some rows at a time, in order."""
        for rows in hidden.split(max(1, _CHUNK // self.size)):
            logits = self._module(rows).float()
            if self._scale != 1:
                logits = logits * self._scale
            yield logits if self._cap is None else self._cap * torch.tanh(logits / self._cap)


class _Rows(nn.Module):
    """Some rows of an output embedding; the module is not registered, so nothing is saved or moved with it."""

    def __init__(self, module: nn.Module, tokens: Tensor) -> None:
        super().__init__()
        self._all, self._tokens = (module,), tokens
        self._plain = type(module).forward is nn.Linear.forward and not module._forward_hooks
        if self._plain:
            self._weight = module.weight[tokens].detach()
            self._bias = None if module.bias is None else module.bias[tokens].detach()

    def forward(self, hidden: Tensor) -> Tensor:
        if self._plain:
            return F.linear(hidden, self._weight, self._bias)
        return self._all[0](hidden)[..., self._tokens]


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
    head.size = theirs.shape[1]
    ours = next(head.logits(kept[0][0])) if kept else torch.full_like(theirs, torch.nan)
    if not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-3):
        raise ValueError(
            f"model: {type(model).__name__} changes its logits after the output embedding in a way not known here"
        )
    return head.size
