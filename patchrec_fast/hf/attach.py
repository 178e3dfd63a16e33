# SPDX-License-Identifier: Apache-2.0
"""`attach`: any Hugging Face causal language model reads packed batches.

A forward pre-hook on the model turns a batch into `inputs_embeds` before the model's own forward runs. The
embedding module is *called*, and compress runs inside its forward: there, and only there, a table that FSDP2 or
ZeRO-3 keeps in shards is whole. Neither the hook nor the embedding's new forward holds any state, so a model that
is copied, resized or sharded afterwards stays right. Whether a model reads packed prompts as each alone, it shows
itself (`check`).
"""

from collections.abc import Iterator
from contextlib import ExitStack
from types import MethodType
from typing import Any, Self
from weakref import WeakSet

import torch
from torch import Tensor, nn

from .._ranges import named
from ..layout.batch import PackedBatch
from ..ops.attention import Segments
from ..ops.compress import Plan, compress
from . import attention as kernels
from . import check, configured, last_layer, masks, supervised
from .lock import exclusive
from .modules import inner_of, keeps_forward, serves
from .positions import check_length

_LAYERS = {"full_attention", "sliding_attention"}
_CLASHES = ("input_ids", "inputs_embeds", "attention_mask", "past_key_values")
_FIELDS = (
    "ids",
    "token_offsets",
    "item_offsets",
    "plan",
    "max_id",
    "supervised_rows",
    "supervised_labels",
    "distinct_rows",
    "absent",
    "longest",
    "levels",
)


class Attachment:
    """What `attach` returns.

    Attributes:
        model: the model.
        attention: transformers' name of the attention implementation it runs with.
    """

    def __init__(self, model: nn.Module, attention: str, undo: ExitStack) -> None:
        self.model = model
        self.attention = attention
        self._undo = undo

    def __repr__(self) -> str:
        return f"Attachment({type(self.model).__name__}, attention={self.attention!r})"

    def __enter__(self) -> Self:
        """`with attach(model): ...` detaches at the end, also of a block that raises."""
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def detach(self) -> None:
        """Puts the model back as it was: hook, attention implementation, forwards. A second call does nothing.

        The attention implementation stays while another model that shares the configuration is attached.
        """
        with exclusive(self.model):
            self._undo.close()


def is_attached(model: nn.Module) -> bool:
    """Whether the model has the hook of `attach`."""
    return _hook in model._forward_pre_hooks.values()


def attach(model: nn.Module, attention: str = "auto", loss: str = "auto") -> Attachment:
    """Lets a Hugging Face causal language model read packed batches, in place.

    Until `detach()`, or the end of a `with attach(model):` block, `model(**batch.model_inputs())`, or `model(batch)`,
    gives `.loss` over the supervised rows and the logits of the rows that predict them, (1, N, V), or None where they
    were never made (`loss`); without targets, the logits of all rows, (1, R, V). Any other call, such as `generate` or
    a padded batch, runs as before, on sdpa. In families that are known (`hf.supervised`), the last layer's MLP sees
    only the rows whose logits are made, unless hidden states are asked for or somebody's hook would see the others.
    Nothing is subclassed and no state-dict name changes. Attach after wrapping with PEFT (which calls its inner model
    without hooks), before DDP, FSDP2 and torch.compile; detach before PEFT merges.

    A plain `nn.Embedding` takes the fused operator. One that scales, adapts, shards by tensor or has a padding row
    is called on the token ids, and its output averaged: always right, slower.

    The model is tried first (`patchrec_fast.hf.check`): it reads two short prompts alone and packed, once for each
    class and configuration; one whose weights are on meta or in shards does at its first packed call. An attached
    model is not pickled (`torch.save(model)` says so), but copied; its state-dict and `save_pretrained` are as ever.

    Args:
        model: a causal language model of transformers, or a PEFT model around one.
        attention: "auto" takes the fastest kernel that serves each call; "varlen", "fa2", "flex" or "masked" that
            kernel (`patchrec_fast.hf.attention`) or an error; any other name is transformers' own implementation,
            such as "sdpa", "eager" or "flash_attention_2".
        loss: "dense" leaves the loss to transformers, whose output has the (N, V) logits of the supervised rows;
            "chunked" works on a block of them at a time and gives none (`patchrec_fast.hf.supervised`), or raises;
            "auto" does so where they are more than 2^22 and the model allows it. A call whose loss is another's, such
            as Liger's or TRL's, is left to it.

    Raises:
        TypeError: not a module with input embeddings.
        ValueError: DataParallel, a model attached already, PEFT's prompt learning, an attention other than that of an
            attached model with the same configuration object, or a model that does not read packed prompts as each
            alone, and what differs; it is left as it was.
        RuntimeError, ImportError: attention or loss that is not available, saying why or what to install.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a Hugging Face causal language model, got {type(model).__name__}")
    with exclusive(model), ExitStack() as undo:
        _check(model)
        _check_neighbours(model, attention)
        checked = check.key(model, attention)
        expected = None if check.passed(checked) or not check.can_run(model) else check.alone(model)
        for config in _configs(model):
            configured.hold(config, undo)
        name = _set_attention(model, attention)
        embedding = _embedding_of(model)
        if _is_plain(embedding):
            embedding.forward = MethodType(_embed, embedding)
            undo.callback(vars(embedding).pop, "forward", None)
        supervised.install(model, loss, undo)
        last_layer.install(model, undo)
        undo.callback(model.register_forward_pre_hook(_hook, with_kwargs=True).remove)
        for decoder in _decoders(inner_of(model)):
            undo.callback(decoder.register_forward_pre_hook(masks.mark, with_kwargs=True).remove)
        if expected is not None:
            check.compare(model, expected, checked, _reads_trees(model))
        elif not check.passed(checked):
            _unchecked.add(model)
            undo.callback(_unchecked.discard, model)
        return Attachment(model, name, undo.pop_all())


def check_decoding(model: Any) -> None:
    """That the model's own keys and values, kept, decode as a plain call does; tried once for each class and
    configuration, on a model that is attached or not.

    Raises:
        ValueError: they do not, or `attach` refuses the model.
    """
    if not check.can_run(model) or not hasattr(model, "config"):
        return  # Run says what is wrong with it
    with exclusive(model):
        attached = is_attached(model)
        if attached and not masks.is_ours(model.config._attn_implementation):
            return
        checked = check.key(model, "decoding")
        if check.passed(checked):
            return
        handle = None if attached else attach(model)
        try:
            check.check_decoding(model, checked)
        finally:
            if handle is not None:
                handle.detach()


def _check(model: nn.Module) -> None:
    if isinstance(model, nn.DataParallel):
        raise ValueError("model: DataParallel splits a packed batch between users; use DistributedDataParallel")
    if not hasattr(model, "config") or not hasattr(model, "set_attn_implementation"):
        raise TypeError(
            f"model must be a Hugging Face causal language model, got {type(model).__name__}; "
            "attach to the model itself before wrapping it (DistributedDataParallel, FSDP)"
        )
    _embedding_of(model)
    if is_attached(model):
        raise ValueError(f"model: this {type(model).__name__} is attached already; detach() it first")
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise ValueError("model: PEFT would prompt the first user only with its virtual tokens; expected adapters")
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(f"model: {type(model).__name__} is an encoder-decoder, expected a causal language model")
    for config in _configs(model):
        unknown = set(getattr(config, "layer_types", None) or ()) - _LAYERS
        if unknown:
            raise ValueError(
                f"model: {type(model).__name__} has layers of type {', '.join(sorted(unknown))}, which would mix "
                f"packed sequences; expected {' and '.join(sorted(_LAYERS))}"
            )


def _check_neighbours(model: Any, attention: str) -> None:
    """That other attached models which share the configuration keep their attention."""
    theirs, ours = configured.in_use(model.config), attention in ("auto", *kernels.KERNELS)
    if theirs is not None and theirs != (kernels.implementation(attention) if ours else attention):
        raise ValueError(
            f"attention: {attention!r} would change the attention of another attached model, {theirs!r}, with which "
            f"this {type(model).__name__} shares its configuration; give it a copy of it, or attach both with one name"
        )


def _embedding_of(model: Any) -> nn.Module:
    try:
        embedding = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        embedding = None
    if not isinstance(embedding, nn.Module):
        raise TypeError(f"model: {type(model).__name__} has no input embeddings")
    return embedding


def _decoders(inner: Any) -> list[Any]:
    """What the model's forward may call: all below its head, or (OPT) the decoder inside of that."""
    outer = getattr(inner, "base_model", inner)
    decoder = inner.get_decoder() if hasattr(inner, "get_decoder") else None
    return [outer] if decoder is None or decoder is outer or not hasattr(decoder, "config") else [outer, decoder]


def _configs(model: nn.Module) -> Iterator[Any]:
    """Each configuration of the model and of its parts, once."""
    waiting: list[Any] = [part.config for part in model.modules() if hasattr(part, "config")]
    seen = set()
    while waiting:
        config = waiting.pop()
        if id(config) in seen or not hasattr(config, "_attn_implementation_internal"):
            continue
        seen.add(id(config))
        waiting += [getattr(config, name, None) for name in getattr(config, "sub_configs", ())]
        yield config


def _set_attention(model: Any, attention: str) -> str:
    if not isinstance(attention, str):
        raise TypeError(f"attention must be a name, got {type(attention).__name__}")
    name = attention
    if attention in ("auto", *kernels.KERNELS):
        kernels.register()
        name = kernels.implementation(attention)
        reason = _why_not(model, attention)
        if reason is not None:
            raise RuntimeError(f"attention={attention!r} cannot serve this model: {reason}")
    try:
        model.set_attn_implementation(name)
    except ValueError as error:
        ours = ", ".join(map(repr, ("auto", *kernels.KERNELS)))
        raise ValueError(f"attention must be {ours} or a name that transformers knows, got {attention!r}") from error
    if model.config._attn_implementation != name:
        raise ValueError(
            f"model: the attention of {type(model).__name__} cannot be set to {name!r}; transformers chose "
            f"{model.config._attn_implementation!r}"
        )
    return name


def _why_not(model: nn.Module, attention: str) -> str | None:
    """Why the kernel cannot serve any call of the model; its dtype is known only call by call (autocast)."""
    if attention == "auto":
        return None
    weight = next(model.parameters())
    softcap = any(getattr(config, "attn_logit_softcapping", None) is not None for config in _configs(model))
    return kernels.why_not(attention, weight.device.type, torch.bfloat16, softcap=softcap)


def _is_plain(embedding: nn.Module) -> bool:
    """Whether a call is exactly a lookup with a dense gradient, whatever hooks gather the table around it."""
    return (
        isinstance(embedding, nn.Embedding)
        and keeps_forward(embedding, nn.Embedding)
        and embedding.max_norm is None
        and embedding.padding_idx is None
        and not embedding.scale_grad_by_freq
        and not embedding.sparse
    )


def _embed(
    self: nn.Embedding,
    ids: Tensor,  # (1, T) with offsets, any shape without
    token_offsets: Tensor | None = None,
    item_offsets: Tensor | None = None,
    plan: Plan | None = None,
) -> Tensor:  # (1, R, d)
    """The forward of a plain embedding while attached; without offsets, the one it had."""
    if token_offsets is None or item_offsets is None:
        return nn.Embedding.forward(self, ids)
    rows = compress(ids[0], (token_offsets, item_offsets), self.weight, plan=plan)  # (R, d)
    return torch.ops.aten._unsafe_view(rows, (1, *rows.shape))  # FSDP2 warns of a module that returns a view


def _read_batch(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The forward pre-hook: a packed batch becomes `inputs_embeds` and what the loss needs."""
    if args and isinstance(args[0], PackedBatch):
        args, kwargs = args[1:], {**args[0].model_inputs(), **kwargs}
    if "token_offsets" not in kwargs:
        return None
    if getattr(model, "_is_replica", False):
        raise ValueError("DataParallel has split a packed batch between users; use DistributedDataParallel")
    clashes = [name for name in _CLASHES if kwargs.get(name) is not None] + ["a positional argument"] * bool(args)
    if clashes:
        raise ValueError(f"a packed batch comes without {', '.join(clashes)}: it has no padding and no past")
    if not torch.compiler.is_compiling():
        check_length(model, kwargs.get("longest") or kwargs["max_length_q"])
        if model in _unchecked:
            _unchecked.discard(model)
            _check_now(model)
    if kwargs.get("segments") is not None:
        _check_attention(model)
        parent, visible, position_ids = kwargs["segments"]
        segments = Segments(kwargs["cu_seq_lens_q"], parent, visible, position_ids, kwargs.get("levels"))
        kwargs = {**kwargs, "segments": segments}
    elif kwargs.get("absent") and kwargs.get("kv_cache") is None:
        raise ValueError(
            f"{kwargs['absent']} rows of the packed batch's prompts are not in it, and no cache has kept them; pack it "
            "whole"
        )
    embedding = _embedding_of(model)
    _check_vocabulary(model, embedding, kwargs.get("max_id"))
    ids, offsets = kwargs["ids"], (kwargs["token_offsets"], kwargs["item_offsets"])
    plan = None if kwargs.get("plan") is None else Plan.from_tensors(kwargs["plan"])
    with named("compress", ids.device):
        if serves(embedding, _embed):
            rows = embedding(ids.unsqueeze(0), *offsets, plan=plan)  # (1, R, d)
        else:
            rows = compress(ids, offsets, embedding).unsqueeze(0)
    packed = {name: value for name, value in kwargs.items() if name not in _FIELDS}
    kept = supervised.on_supervised_rows(kwargs)
    packed.update(kept, inputs_embeds=rows, use_cache=False)
    if kept or not torch.is_grad_enabled():  # a row that a caller names twice would get its gradient twice
        packed.update(last_layer.kept_rows(model, packed, kwargs.get("distinct_rows")))
    return (), packed


class _Hook:
    """`_read_batch`, in a form that says why an attached model is not pickled; copies of the model share it."""

    def __call__(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _read_batch(model, args, kwargs)

    def __deepcopy__(self, memo: Any) -> "_Hook":
        return self

    def __reduce__(self) -> Any:
        raise TypeError(
            "an attached model is not pickled: its forwards are this process's; detach() it first, or keep its "
            "state_dict() or what save_pretrained() writes, which are as without attach"
        )


_hook = _Hook()
# Attached with weights on meta or in shards: their first packed call checks them.
_unchecked: "WeakSet[nn.Module]" = WeakSet()


def _check_now(model: Any) -> None:
    """The check of `attach`, inside the model's own call: the hooks around it have run, and do not run again."""

    def call(**inputs: Any) -> Any:
        read = _read_batch(model, (), inputs)
        return model.forward(**(inputs if read is None else read[1]))

    checked = check.key(model, model.config._attn_implementation)
    if not check.passed(checked):
        check.compare(model, check.alone(model, call), checked, _reads_trees(model), call)


def _reads_trees(model: Any) -> bool:
    return kernels.reads_trees(model.config._attn_implementation, next(model.parameters()).device.type)


def _check_attention(model: Any) -> None:
    """That the model's attention is ours, for a batch whose prompts share rows."""
    attention = model.config._attn_implementation
    if not masks.is_ours(attention):
        ours = ", ".join(map(repr, ("auto", *kernels.KERNELS)))
        raise ValueError(
            f"prompts of the packed batch share rows, which attention {attention!r} does not compute; attach with "
            f"{ours}, or pack with share=False"
        )


def _check_vocabulary(model: Any, embedding: nn.Module, max_id: int | None) -> None:
    size = getattr(embedding, "num_embeddings", None)
    if size is None:
        size = model.config.get_text_config().vocab_size
    if max_id is not None and max_id >= size:
        raise ValueError(
            f"ids must be below the model's {size} embeddings, got {max_id}: the batch was packed for another "
            "vocabulary; call model.resize_token_embeddings(prompt.num_embeddings)"
        )
