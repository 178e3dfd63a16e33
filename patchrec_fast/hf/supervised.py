# SPDX-License-Identifier: Apache-2.0
"""The loss of a packed call: on the supervised rows, and without logits where those would be large.

transformers' own forward leaves the other rows out, told by `logits_to_keep` (a 1-D index, which Liger's forward takes
too) and `shift_labels`. Its loss is a cross-entropy of float32 logits, a mean over the supervised rows, or their sum
over `num_items_in_batch` where the trainer gives that.

A dense loss holds 14 bytes for each of its N x V logits (measured, bfloat16: the logits, their float32 copy,
log-probabilities and gradients), and reads them from memory at every step of it. Where they are more than a few the
model runs a forward of ours, its decoder then its head. The head is *called*, with the labels, and its forward computes
the losses a block at a time: there, and only there, a weight that FSDP2 or ZeRO-3 keeps in shards is whole. Neither
forward holds any state.
"""

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from types import MethodType
from typing import Any

from torch import Tensor, nn

from ..layout.batch import supervised_rows
from ..ops.cross_entropy import IGNORE, linear_cross_entropy
from .modules import inner_of, keeps_forward, restore, serves

LOSSES = ("auto", "dense", "chunked")
# Logits of a call that "auto" leaves to transformers: 32 rows of Llama 3's vocabulary.
DENSE = 2**22
# Whose forward is exactly decoder, `lm_head`, `loss_function`; the Gemmas' unless they cap the logits.
FAMILIES = ("Gemma", "Gemma2", "Gemma3", "Llama", "Mistral", "Olmo2", "Phi3", "Qwen2", "Qwen3", "SmolLM3")
_LOSS_HAS_AN_OWNER = ("fused_lm_head", "shift_labels", "logits_to_keep")  # TRL; a caller who does it by hand


def on_supervised_rows(kwargs: dict[str, Any]) -> dict[str, Any]:
    """What to add to a packed call so that only supervised rows reach the head.

    Args:
        kwargs: the call's: `labels` (1, R) int64, not shifted, -100 where unsupervised; and `supervised_rows`
            (N,) int64, the rows whose successor is supervised, which `PackedBatch.model_inputs` finds on the host
            (finding them here waits for a GPU). Where prompts share rows also `supervised_labels` (1, N): of an
            answer that begins a segment, the row before it is not the one before its label.

    Returns:
        `logits_to_keep` (N,) and `shift_labels` (1, N); nothing where there are no labels or where the caller owns
        the loss (TRL's `fused_lm_head`, or `shift_labels` or `logits_to_keep` given).
    """
    labels: Tensor | None = kwargs.get("labels")
    owner = next((name for name in _LOSS_HAS_AN_OWNER if name in kwargs), None)
    rows, targets = kwargs.get("supervised_rows"), kwargs.get("supervised_labels")
    if targets is not None and (owner is not None or rows is None):
        raise ValueError(
            f"{owner or 'supervised_rows'}: the loss of a packed batch whose prompts share rows is left to the model's "
            "own, for its labels are not one row behind; pack with share=False for another loss"
        )
    if labels is None or owner is not None:
        return {}
    if targets is not None and rows is not None:
        return {"logits_to_keep": rows, "shift_labels": targets}
    if rows is None:
        rows = supervised_rows(labels[0])
    return {"logits_to_keep": rows, "shift_labels": labels[:, rows + 1]}


def install(model: Any, loss: str, undo: ExitStack) -> None:
    """Gives the model and its head the forwards that make no logits, where they can serve.

    Args:
        model: a causal language model of transformers, or a PEFT model around one.
        loss: one of LOSSES. "dense" changes nothing.
        undo: is told how to restore them.

    Raises:
        TypeError, ValueError: no such loss.
        RuntimeError: "chunked" cannot serve this model, and why.
    """
    if not isinstance(loss, str):
        raise TypeError(f"loss must be a name, got {type(loss).__name__}")
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(map(repr, LOSSES))}, got {loss!r}")
    if loss == "dense":
        return
    inner = inner_of(model)
    reason = _why_not(inner)
    if reason is not None:
        if loss == "chunked":
            raise RuntimeError(_refusal(reason))
        return
    head = inner.get_output_embeddings()
    for module, function in ((inner, _forward_of(type(inner), always=loss == "chunked")), (head, head_forward)):
        module.forward = MethodType(function, module)
        undo.callback(restore, module, module.forward)


def family_of(inner: Any) -> str | None:
    """Which of FAMILIES the model is of, by its class's forward."""
    forward = type(inner).forward
    family = forward.__qualname__.removesuffix("ForCausalLM.forward")
    return family if family in FAMILIES and forward.__module__.startswith("transformers.models.") else None


def _why_not(inner: Any) -> str | None:
    """Why losses cannot stand for the model's logits, as the model is before `install`."""
    name = type(inner).__name__
    if family_of(inner) is None:
        return f"{name}'s forward is not known to be decoder, head and loss alone; known are {', '.join(FAMILIES)}"
    if "forward" in vars(inner):
        return f"{name}'s forward has been replaced (by Liger or TRL, say), and may have a loss of its own"
    if getattr(inner.config, "final_logit_softcapping", None) is not None:
        return f"{name} caps its logits"
    head = inner.get_output_embeddings()
    if not keeps_forward(head, nn.Linear):
        return f"its head is no plain linear layer but {type(head).__module__}.{type(head).__name__}"
    return None


def _refusal(reason: str) -> str:
    return f"loss='chunked' cannot serve this model: {reason}; use 'auto' or 'dense'"


def _forward_of(kind: type, always: bool) -> Callable[..., Any]:
    """A forward for models of the class, with the class's signature, which `generate` and trainers read."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _is_ours(kwargs):
            head = self.get_output_embeddings()
            if always or kwargs["shift_labels"].numel() * head.out_features > DENSE:
                reason = _why_not_now(self, head)
                if reason is None:
                    return _without_logits(self, head, **kwargs)
                if always:
                    raise RuntimeError(_refusal(reason))
        return type(self).forward(self, *args, **kwargs)

    forward.__signature__ = inspect.signature(kind.forward)  # type: ignore[attr-defined]
    return forward


def _is_ours(kwargs: dict[str, Any]) -> bool:
    """Whether the call is a packed one, to whose labels the hook of `attach` added the rows."""
    needed = ("cu_seq_lens_q", "labels", "shift_labels", "logits_to_keep")
    return all(kwargs.get(name) is not None for name in needed)


def _why_not_now(inner: Any, head: nn.Module) -> str | None:
    """What has changed since `install`."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    if inner.loss_function is not ForCausalLMLoss:
        return "it has a loss function of its own"
    if not serves(head, head_forward):
        return "its head has been replaced or sharded by tensor, or a hook reads its logits"
    return None


def _without_logits(
    self: Any,
    head: nn.Module,
    labels: Tensor,  # (1, R), given in shift_labels for the rows that count
    shift_labels: Tensor,  # (1, N)
    logits_to_keep: Tensor,  # (N,)
    num_items_in_batch: Tensor | int | None = None,
    return_dict: bool | None = None,
    **kwargs: Any,
) -> Any:
    """What transformers' forward gives, with None for logits."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    made = self.base_model(**kwargs, return_dict=True)
    losses = head(made.last_hidden_state[0, logits_to_keep], shift_labels[0])  # (N,)
    count = (shift_labels != IGNORE).sum() if num_items_in_batch is None else num_items_in_batch
    if isinstance(count, Tensor):
        count = count.to(losses.device)
    out = CausalLMOutputWithPast(
        loss=losses.sum() / count, hidden_states=made.hidden_states, attentions=made.attentions
    )
    return out if (self.config.return_dict if return_dict is None else return_dict) else out.to_tuple()


def head_forward(self: nn.Linear, hidden: Tensor, labels: Tensor | None = None) -> Tensor:
    """The forward of a plain head while attached: (N,) losses with labels; without, the one it had."""
    if labels is None:
        return nn.Linear.forward(self, hidden)
    return linear_cross_entropy(hidden, self.weight, labels, self.bias)
