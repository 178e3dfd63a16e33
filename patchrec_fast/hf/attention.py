# SPDX-License-Identifier: Apache-2.0
"""The attention implementation `patchrec_varlen` of transformers: causal attention within each packed sequence.

A call that carries `cu_seq_lens_q` is packed and goes to one of four kernels; any other call goes to transformers'
own sdpa with the mask that sdpa would get. Kernels, by preference:

- `varlen`: memory linear in rows. CUDA: torch's `varlen_attn`, which follows `activate_flash_attention_impl("FA3")`.
  CPU: torch's flash kernel one sequence at a time, as one operator that a compiler sees as a whole.
- `fa2`: the flash-attn package, which has dropout and soft-capping.
- `flex`: FlexAttention on CUDA, compiled once: float32, soft-capping, values of another width; not for kept keys.
- `masked`: any device and dtype, with an (R, S) mask of all keys: sdpa, or plain PyTorch where logits are soft-capped.

The implementation's name stands for the first that can serve; `patchrec_varlen.<kernel>` serves or raises. The
names avoid the word "flash", by which transformers recognises its own implementations.
"""

import importlib.metadata
import inspect
from contextlib import nullcontext
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakIdKeyDictionary

from ..ops.attention import Segments, flex, segment_attention
from ..ops.attention.varlen import varlen_attention
from .masks import NAME, check_mask, is_ours, unpacked_mask, watched

KERNELS = ("varlen", "fa2", "flex", "masked")
_SEGMENT_IMPLS = {"auto": "auto", "flex": "flex", "masked": "reference"}
_forests = WeakIdKeyDictionary()  # cu_seqlens -> its version, and its Segments


def register() -> None:
    """Makes the implementation known to transformers, in both of its registries.

    A name with attention but no mask function would get no mask at all, and padding would be attended to.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    # They ask the machine, and guard on nothing. Marked here: this imports the compiler, and with it Triton.
    for answer in (choose, _grouped):
        torch.compiler.assume_constant_result(answer)
    for kernel in ("auto", *KERNELS):
        name = implementation(kernel)
        AttentionInterface.register(name, partial(attend, kernel=kernel))
        AttentionMaskInterface.register(name, unpacked_mask)


def implementation(kernel: str) -> str:
    """The implementation's name for a kernel, or for "auto"."""
    return NAME if kernel == "auto" else f"{NAME}.{kernel}"


def reads_trees(name: str, device_type: str) -> bool:
    """Whether the implementation of that name serves packed calls whose segments have parents."""
    kernel = name.partition(".")[2] or "auto"
    return is_ours(name) and _segment_impl(kernel, device_type) is not None


def attend(
    module: nn.Module,
    query: Tensor,  # (B, Hq, L, D)
    key: Tensor,  # (B, Hk, S, D)
    value: Tensor,  # (B, Hk, S, Dv)
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    *,
    kernel: str = "auto",
    **kwargs: Any,
) -> tuple[Tensor, None]:  # (B, L, Hq, Dv)
    """What transformers calls in each layer.

    Args:
        attention_mask: (B, 1, L, S) bool for an unpacked call, as `unpacked_mask` made it; for a packed one what `mark`
            made, which speaks where kwargs do not.
        sliding_window: a row sees itself and the `sliding_window - 1` rows before it.
        softcap: logits become `softcap * tanh(logits / softcap)`.
        kernel: one of KERNELS, or "auto".
        kwargs: the model's other arguments; `cu_seq_lens_q` (B + 1,) int32 and `max_length_q` make a packed call;
            a `kv_cache` (`patchrec_fast.hf.decode_cache`) takes a packed call's keys and values, and serves the others;
            `cu_seq_lens_k` and `max_length_k` count what it puts before the rows of a packed call too. `segments`, the
            forest of a packed call some of whose segments have parents, goes to `segment_attention`.

    Raises:
        ValueError: what no path here computes (attention sinks; packed rows with a cache, a position bias, a mask of
            the model's own, in several batch rows or without causality); a packed call of which nothing is told.
        RuntimeError: the kernel asked for cannot serve.
    """
    if s_aux is not None:
        raise ValueError(f"{type(module).__name__} has attention sinks, which {NAME} does not compute")
    if attention_mask is not None and not torch.compiler.is_compiling():
        kwargs = {**getattr(attention_mask, "packing", {}), **kwargs}
    cu_seqlens, kv_cache = kwargs.get("cu_seq_lens_q"), kwargs.get("kv_cache")
    check_mask(module, attention_mask, query.shape[2], packed=cu_seqlens is not None or kv_cache is not None)
    if kv_cache is not None and cu_seqlens is None:
        scale, qkv = query.shape[-1] ** -0.5 if scaling is None else scaling, _one_dtype(query, key, value)
        device = query.device.type
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            return kv_cache.attend(module.layer_idx, *qkv, scale, sliding_window, softcap), None
    window = getattr(attention_mask, "window", sliding_window) if watched() else sliding_window
    if window != sliding_window:
        raise ValueError(
            f"{type(module).__name__} has rows see {window} rows by its mask, and tells its attention of "
            f"{sliding_window}: a packed call would not know of the window"
        )
    if cu_seqlens is None or kwargs.get("cache") is not None:  # continuous batching gives both, and its own mask
        if softcap is not None:
            scale = query.shape[-1] ** -0.5 if scaling is None else scaling
            out = _dense(query, key, value, attention_mask, scale, dropout, softcap)
            return out.transpose(1, 2).contiguous(), None
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        options = dict(dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs)
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if kwargs.get("position_bias") is not None:
        raise ValueError(f"{type(module).__name__} adds a position bias, which {NAME} does not compute when packed")
    if query.shape[0] != 1 or key.shape[2] != query.shape[2]:
        raise ValueError(
            "a packed call takes one batch row and no cache; "
            f"got queries {tuple(query.shape)} and keys {tuple(key.shape)} (batch, heads, rows, width)"
        )
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise ValueError(f"{type(module).__name__} is not causal; {NAME} packs causal attention only")
    q, k, v = (x[0].transpose(0, 1) for x in _one_dtype(query, key, value))  # (R, H, D)
    if kv_cache is not None:
        k, v = kv_cache.update(module.layer_idx, k, v)
    elif kwargs.get("segments") is not None:
        impl = _checked_segment_impl(kernel, query.device.type, dropout)
        segments = kwargs["segments"]
        out = segment_attention(q, k, v, segments, scale=scaling, window=sliding_window, softcap=softcap, impl=impl)
        return out.unsqueeze(0), None
    out = packed_attention(
        q,
        k,
        v,
        cu_seqlens,
        kwargs["max_length_q"],
        scale=scaling,
        window=sliding_window,
        dropout=dropout,
        softcap=softcap,
        kernel=kernel,
        cu_seqlens_k=kwargs.get("cu_seq_lens_k"),
        max_seqlen_k=kwargs.get("max_length_k"),
    )
    return out.unsqueeze(0), None


def _segment_impl(kernel: str, device_type: str) -> str | None:
    """The implementation of `segment_attention` that a kernel's name stands for; None for those that have none."""
    return "cpu" if kernel == "varlen" and device_type == "cpu" else _SEGMENT_IMPLS.get(kernel)


def _checked_segment_impl(kernel: str, device_type: str, dropout: float) -> str:
    if dropout > 0:
        raise RuntimeError(
            "rows that several prompts share are attended to without dropout of attention weights; set the model's "
            "attention_dropout to 0, or pack with share=False"
        )
    impl = _segment_impl(kernel, device_type)
    if impl is None:
        raise RuntimeError(
            f"attention={kernel!r} cannot serve a batch whose prompts share rows; attach with 'auto' or 'masked', or "
            "pack with share=False"
        )
    return impl


def _one_dtype(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Autocast's dtype, or value's: a norm kept in float32 makes queries and keys wider than values."""
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    return query.to(dtype), key.to(dtype), value.to(dtype)


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    scale: float | None = None,
    window: int | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    kernel: str = "auto",
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_k: int | None = None,
) -> Tensor:
    """Causal attention of each row to the rows of its own sequence.

    Args:
        query: (R, Hq, D) in any floating dtype.
        key, value: (S, Hk, D) and (S, Hk, Dv); Hk divides Hq.
        cu_seqlens: (B + 1,) int32; sequence b's queries are `cu_seqlens[b]:cu_seqlens[b + 1]`.
        max_seqlen: the longest sequence's queries, on the host.
        scale: of the logits; None is `D ** -0.5`.
        window: how many rows a row sees, itself included; None is all before it.
        dropout: probability, of attention weights.
        softcap: logits become `softcap * tanh(logits / softcap)`.
        kernel: one of KERNELS, or "auto".
        cu_seqlens_k, max_seqlen_k: the same of keys, at least as many in each sequence; the queries are its last
            rows. None where every row is a query.

    Returns:
        (R, Hq, Dv).

    Raises:
        RuntimeError: the kernel cannot serve, and why.
        ValueError: cu_seqlens that do not divide the rows (on the CPU), an unknown kernel.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    cu_seqlens_k = cu_seqlens if cu_seqlens_k is None else cu_seqlens_k
    lengths = (cu_seqlens, cu_seqlens_k, max_seqlen, max_seqlen if max_seqlen_k is None else max_seqlen_k)
    drops = False
    if dropout > 0:  # compiled in training mode the rate is symbolic: a branch makes a guard, a comparison does not
        drops = True
    kept = False
    if key.shape[0] != query.shape[0]:  # no sequence has fewer keys than queries
        kept = True
    chosen = choose(
        kernel,
        query.device.type,
        query.dtype,
        widths=(query.shape[-1], value.shape[-1]),
        dropout=drops,
        softcap=softcap is not None,
        kept=kept,
    )
    if chosen == "flex":
        segments = _forest(cu_seqlens, query.shape[0])
        return segment_attention(query, key, value, segments, scale=scale, window=window, softcap=softcap, impl="flex")
    if chosen == "masked":
        allowed = _within_segments(cu_seqlens, cu_seqlens_k, query.shape[0], key.shape[0], window)  # (R, S)
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (query, key, value))
        return _dense(q, k, v, allowed, scale, dropout, softcap)[0].transpose(0, 1)
    if chosen == "fa2":
        from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]

        return flash_attn_varlen_func(
            query,
            key,
            value,
            *lengths,
            dropout_p=dropout,
            softmax_scale=scale,
            causal=True,
            window_size=_window(window),
            softcap=softcap or 0.0,
        )
    if query.device.type == "cpu":
        return varlen_attention(query, key, value, cu_seqlens, scale, window, cu_seqlens_k)
    from torch.nn.attention.varlen import varlen_attn

    options: dict[str, Any] = {"scale": scale, "window_size": _window(window), **_grouped()}
    return cast(Tensor, varlen_attn(query, key, value, *lengths, **options))


def _window(window: int | None) -> tuple[int, int]:
    """The flash kernels' form: rows seen before a row, and after it."""
    return (-1 if window is None else window - 1, 0)


def _grouped() -> dict[str, bool]:
    """torch 2.12 asks to be told of grouped heads; before, they needed no word."""
    from torch.nn.attention.varlen import varlen_attn

    return {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


def choose(
    kernel: str,
    device_type: str,
    dtype: torch.dtype,
    *,
    widths: tuple[int, int] = (64, 64),
    dropout: bool = False,
    softcap: bool = False,
    kept: bool = False,
) -> str:
    """The kernel that serves; RuntimeError where the one asked for cannot."""
    reason = None
    for each in KERNELS if kernel == "auto" else (kernel,):  # "masked", the last, always serves
        reason = why_not(each, device_type, dtype, widths=widths, dropout=dropout, softcap=softcap, kept=kept)
        if reason is None:
            return each
    raise RuntimeError(f"attention={kernel!r} cannot serve this call: {reason}")


def why_not(
    kernel: str,
    device_type: str,
    dtype: torch.dtype,
    *,
    widths: tuple[int, int] = (64, 64),
    dropout: bool = False,
    softcap: bool = False,
    kept: bool = False,
) -> str | None:
    """None where the kernel can serve such a call, else the reason in one line.

    Args:
        widths: of a head of queries and keys, and of values.
        dropout, softcap: whether the call has them.
        kept: whether it has more keys than queries.
    """
    if kernel == "masked":
        return None
    if kernel not in KERNELS:
        raise ValueError(f"attention must be one of {', '.join(map(repr, KERNELS))}, got {kernel!r}")
    if kernel == "flex":
        if dropout:
            return "it has no dropout of attention weights; set the model's attention_dropout to 0"
        if kept:
            return "it takes as many keys as queries, and this call has keys that were kept; use 'masked'"
        return flex.why_not(device_type, dtype, widths)
    absent = _absent(kernel, device_type)
    if absent is not None:
        return absent
    if widths[0] != widths[1]:
        return f"it takes values as wide as queries, got heads of {widths[0]} and {widths[1]}"
    if kernel == "varlen" and dropout:
        return "it has no dropout of attention weights; set the model's attention_dropout to 0"
    if kernel == "varlen" and softcap:
        return "it does not cap logits, as this model does; use 'fa2', 'flex' or 'masked'"
    if device_type == "cpu":
        return None
    if dtype not in (torch.float16, torch.bfloat16):
        return f"on a GPU it takes float16 and bfloat16, got {dtype}; load the model in bfloat16 or use autocast"
    if widths[0] % 8 or widths[0] > 256:
        return f"it takes heads of a multiple of 8 up to 256, got {widths[0]}"
    return None


def _forest(cu_seqlens: Tensor, rows: int) -> Segments:
    """The sequences as segments without parents: one object a batch, with which every layer keeps its block mask."""
    version = None if cu_seqlens.is_inference() else cu_seqlens._version
    known = _forests.get(cu_seqlens)
    if known is None or version is None or known[0] != version:
        none = torch.full_like(cu_seqlens[1:], -1)
        owner = torch.repeat_interleave(cu_seqlens.diff(), output_size=rows)
        position_ids = torch.arange(rows, device=cu_seqlens.device) - cu_seqlens[owner]
        own = cu_seqlens.clone()  # a value that held its key would keep it for good
        known = _forests[cu_seqlens] = version, Segments(own, none, torch.zeros_like(none), position_ids, levels=1)
    return cast(Segments, known[1])


@cache
def _absent(kernel: str, device_type: str) -> str | None:
    """What the machine lacks for a kernel, whatever the call."""
    if kernel == "varlen" and device_type == "cpu":
        return None
    if device_type != "cuda":
        return f"it runs on {'CPU and CUDA' if kernel == 'varlen' else 'CUDA'} tensors, got a tensor on {device_type}"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if torch.version.hip is None and torch.cuda.get_device_capability() < (8, 0):
        return f"it needs compute capability 8.0, {torch.cuda.get_device_name()} has less; use 'masked'"
    if kernel == "varlen":
        try:
            from torch.nn.attention.varlen import varlen_attn
        except ImportError:
            return "this torch has no varlen_attn; install torch>=2.11 or pip install flash-attn"
        needed = {"scale", "window_size"} - set(inspect.signature(varlen_attn).parameters)
        return f"this torch's varlen_attn takes no {', '.join(needed)}; install torch>=2.11" if needed else None
    try:  # by distribution: flash-attn-4 installs a package of the same name
        version = importlib.metadata.version("flash-attn")
    except importlib.metadata.PackageNotFoundError:
        return "the flash-attn package is not installed; pip install flash-attn"
    major, minor = (int(part) for part in version.split(".")[:2])
    return None if (major, minor) >= (2, 6) else f"it needs flash-attn>=2.6, got {version}; pip install -U flash-attn"


def _within_segments(cu_seqlens: Tensor, cu_seqlens_k: Tensor, queries: int, keys: int, window: int | None) -> Tensor:
    """(R, S) bool: the key's row is in the query's sequence, not after it, and inside the window."""
    segment, left = _places(cu_seqlens, queries)
    segment_k, left_k = _places(cu_seqlens_k, keys)
    back = left_k - left.unsqueeze(1)  # how far before the query
    allowed = (segment.unsqueeze(1) == segment_k) & (back >= 0)
    return allowed if window is None else allowed & (back < window)


def _places(cu_seqlens: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """(R,) each row's sequence, and how many rows of it are left, its own included."""
    row = torch.arange(rows, device=cu_seqlens.device)
    ends = cu_seqlens[1:].contiguous()
    segment = torch.searchsorted(ends, row, right=True).clamp(max=len(ends) - 1)  # a GPU dies of a place beyond
    return segment, ends[segment] - row


def _dense(
    query: Tensor,  # (B, Hq, L, D)
    key: Tensor,  # (B, Hk, S, D)
    value: Tensor,  # (B, Hk, S, Dv)
    allowed: Tensor | None,  # bool, broadcast to (B, Hq, L, S)
    scale: float,
    dropout: float,
    softcap: float | None,
) -> Tensor:  # (B, Hq, L, Dv)
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if softcap is None:
        return F.scaled_dot_product_attention(query, key, value, allowed, dropout, scale=scale)
    logits = softcap * torch.tanh(query @ key.mT * (scale / softcap))
    if allowed is not None:  # not -inf: a padding row may see nothing, and its NaN would spread
        logits = logits.masked_fill(~allowed, torch.finfo(logits.dtype).min)
    weights = logits.softmax(-1, dtype=torch.float32).to(query.dtype)
    return F.dropout(weights, dropout) @ value
