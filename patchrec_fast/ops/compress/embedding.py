# SPDX-License-Identifier: Apache-2.0
"""Which embedding table `compress` reads, and when a module may be read as a bare table."""

from types import TracebackType

from torch import Tensor, nn
from torch.nn.modules import module as _global_hooks

_bound: list[Tensor | nn.Module] = []


class use_embedding:
    """Binds the table for `compress(ids, offsets)`.

    `with use_embedding(model): ...` binds it for the block and then puts back what was bound before; a bare call
    `use_embedding(model)` binds it until the next one. The binding is the process's, shared by its threads.

    Args:
        embedding: an embedding module, a (V, d) tensor, or a model with `get_input_embeddings()`. A module is
            asked for its table anew at each call, so resizing or moving it is seen.
    """

    def __init__(self, embedding: Tensor | nn.Module) -> None:
        self._previous = list(_bound)
        _bound[:] = [_resolve(embedding)]

    def __enter__(self) -> "use_embedding":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _bound[:] = self._previous


def bound_embedding() -> Tensor | nn.Module:
    """What `use_embedding` bound; RuntimeError where nothing is."""
    if not _bound:
        raise RuntimeError(
            "compress needs an embedding table: pass weight=, or bind one with patchrec_fast.use_embedding(model)"
        )
    return _bound[0]


def _resolve(embedding: Tensor | nn.Module) -> Tensor | nn.Module:
    if isinstance(embedding, Tensor):
        return embedding
    if not isinstance(embedding, nn.Module):
        raise TypeError(
            f"embedding must be a (V, d) tensor, an embedding module or a model, got {type(embedding).__name__}"
        )
    get_input_embeddings = getattr(embedding, "get_input_embeddings", None)
    if get_input_embeddings is None:
        return embedding
    module = get_input_embeddings()
    if not isinstance(module, nn.Module):
        raise TypeError(f"{type(embedding).__name__}.get_input_embeddings() gave {type(module).__name__}, no module")
    return module


def plain_table(module: nn.Module) -> Tensor | None:
    """The module's (V, d) table where `module(ids)` is exactly its lookup, else None.

    A subclass may scale (Gemma), an adapter may add (PEFT), a hook or a replaced forward may gather a sharded
    table (FSDP, ZeRO-3, accelerate): reading `.weight` there gives other numbers, or an empty tensor.
    """
    if type(module) is not nn.Embedding or "forward" in vars(module) or _hooked(module):
        return None
    if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
        return None
    if module.padding_idx is not None:  # its row gets no gradient
        return None
    weight = module.weight
    return weight if type(weight) in (Tensor, nn.Parameter) and weight.ndim == 2 else None


def _hooked(module: nn.Module) -> bool:
    own = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    everywhere = (_global_hooks._global_forward_hooks, _global_hooks._global_forward_pre_hooks)
    return any(own) or any(everywhere)
