# SPDX-License-Identifier: Apache-2.0
"""The last layer's MLP runs on the rows that go on to the head.

The last attention needs the keys and values of all rows. What follows it is row by row, and of a packed call only the
rows that predict a target, or the last of each prompt, go on. `attach` names them among the model's arguments,
`kept_rows`, which transformers hands to each layer. The last layer has a forward of ours: its class's own, on a
stand-in whose MLP selects the rows, and puts them back among zeros. A norm leaves zeros as they are, and the residual
gains nothing by them. Neither forward nor stand-in changes anything, so a layer that gradient checkpointing runs
again, or that is compiled, does the same.
"""

from collections.abc import Callable
from contextlib import ExitStack
from itertools import chain
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules import module as _global_hooks

from .modules import inner_of, restore
from .supervised import family_of

# Their hooks and forwards gather, move, cast or mark rows, or read none but those they ask logits of.
_KNOWN = {"accelerate", "deepspeed", "liger_kernel", "patchrec_fast", "torch", "transformers"}


def install(model: Any, undo: ExitStack) -> None:
    """Gives the last layer its forward where the model's family is known; elsewhere changes nothing.

    Args:
        model: a causal language model of transformers, or a PEFT model around one.
        undo: is told how to restore it.
    """
    inner = inner_of(model)
    family = family_of(inner)
    if family is None:
        return
    layer = _last(inner)
    kind = type(layer)
    if kind.forward.__qualname__ != f"{family}DecoderLayer.forward" or "forward" in vars(layer):
        return
    layer.forward = MethodType(_forward_of(kind), layer)
    undo.callback(restore, layer, layer.forward)


def kept_rows(model: Any, packed: dict[str, Any], distinct: Tensor | None = None) -> dict[str, Tensor]:
    """What to add to a packed call so that the last MLP sees the rows of `logits_to_keep` alone.

    Args:
        model: as given to `install`.
        packed: the call's arguments; `inputs_embeds` (1, R, d).
        distinct: the rows of `logits_to_keep` once each, where they may come several times.

    Returns:
        `kept_rows` (N,); nothing where the last layer has no forward of ours, where `logits_to_keep` is no index tensor
        or names more than three quarters of the rows, or where somebody may look at the others: hidden states are
        asked for, or a hook or a forward in their way is of a package that is not known to leave them alone.
    """
    rows = packed.get("logits_to_keep")
    if not isinstance(rows, Tensor) or rows.dtype != torch.int64 or rows.dim() != 1:
        return {}
    rows = rows if distinct is None else distinct
    if 4 * rows.shape[0] > 3 * packed["inputs_embeds"].shape[1]:
        return {}
    inner = inner_of(model)
    if packed.get("output_hidden_states") or inner.config.output_hidden_states:
        return {}
    return {"kept_rows": rows} if _installed(inner) and _unwatched(inner) else {}


def _last(inner: Any) -> Any:
    return inner.base_model.layers[-1]


def _installed(inner: Any) -> bool:
    """Whether there is a last layer where a known family has it, and it is the one of `install`."""
    if not hasattr(inner.base_model, "layers"):
        return False
    return getattr(vars(_last(inner)).get("forward"), "__module__", None) == __name__


def _unwatched(inner: Any) -> bool:
    """Whether the model's forward, and each hook from the last layer on, is of a known package."""
    readers = [inner.forward, *_global_hooks._global_forward_pre_hooks.values()]
    readers += _global_hooks._global_forward_hooks.values()
    for module in (inner.base_model, inner.base_model.norm, *_last(inner).modules()):
        readers += chain(module._forward_pre_hooks.values(), module._forward_hooks.values())
    return all(str(getattr(reader, "__module__", None)).partition(".")[0] in _KNOWN for reader in readers)


def _forward_of(kind: Any) -> Callable[..., Any]:
    """A forward for layers of the class."""

    class OnRows(_OnRows):
        forward = kind.forward  # on the class, where gradient checkpointing looks for it

    def forward(self: Any, *args: Any, kept_rows: Tensor | None = None, **kwargs: Any) -> Any:
        layer = self if kept_rows is None else OnRows(self, kept_rows)
        return type(self).forward(layer, *args, **kwargs)  # FSDP2 has changed the class

    return forward


class _OnRows:
    """A decoder layer in all but its MLP, which sees N rows of R."""

    def __init__(self, layer: Any, rows: Tensor) -> None:
        self._layer, self._rows = layer, rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def mlp(self, hidden: Tensor) -> Tensor:  # (1, R, d)
        out = self._layer.mlp(hidden[:, self._rows])  # (1, N, d)
        whole = out.new_zeros((*hidden.shape[:2], out.shape[2]))
        whole[:, self._rows] = out
        return whole
