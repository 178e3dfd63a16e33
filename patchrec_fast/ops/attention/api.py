# SPDX-License-Identifier: Apache-2.0
"""`segment_attention`: attention of a forest of segments, and who serves it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import flex, reference
from . import operator as _registered  # noqa: F401
from .segments import Segments

IMPLS = ("auto", "cpu", "flex", "blocks", "reference")


def segment_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """Attention of a forest: softmax(scale * q k) v of each row over its ancestors' visible rows and its own before it.

    What several sequences begin with is there once, and what it is worth to each of them meets in its gradient. On the
    CPU nothing of keys and values is copied, the backward is deterministic, and memory is linear in rows. There, capped
    logits and values of another width than queries go through plain PyTorch, a block of queries at a time: as exact,
    several times slower. Where segments have parents, 16 bits are computed in float32 and rounded once.

    Args:
        query: (R, Hq, D), floating.
        key: (R, Hk, D) of query's dtype. Hk divides Hq: query head h reads key head `h // (Hq // Hk)`.
        value: (R, Hk, Dv) of query's dtype.
        segments: of R rows, on query's device.
        scale: of the logits; None is `D ** -0.5`.
        window: a row sees itself and the `window - 1` positions before it, ancestors' rows included. None is no window.
        softcap: logits become `softcap * tanh(logits / softcap)`. None is no cap.
        impl: "cpu" on the CPU; "flex" is FlexAttention on CUDA, compiled once; "blocks" is plain PyTorch on CUDA, a
            block of queries at a time, for what "flex" does not take; "reference" is a dense mask, R * R. "auto" is the
            first of them that serves; one asked for by name serves or raises.

    Returns:
        (R, Hq, Dv) of query's dtype.

    Raises:
        TypeError, ValueError: malformed input, naming the argument; segments that are none, where they are in host
            memory.
        RuntimeError: `impl` cannot serve, and why; a second derivative, except of "reference".
    """
    if impl not in IMPLS:
        raise ValueError(f"impl must be one of {', '.join(map(repr, IMPLS))}, got {impl!r}")
    _check_tensors(query, key, value, segments)
    _check_numbers(scale, window, softcap)
    scale = query.shape[2] ** -0.5 if scale is None else float(scale)
    softcap = None if softcap is None else float(softcap)
    chosen = choose(impl, query.device.type, query.dtype, widths=(query.shape[2], value.shape[2]))
    if chosen in ("cpu", "blocks"):
        forest = segments.cu_seqlens, segments.parent, segments.visible
        made: Tensor = torch.ops.patchrec_fast.segment_attention(query, key, value, *forest, scale, window, softcap)[0]
        return made
    serving = flex if chosen == "flex" else reference
    return serving.segment_attention(query, key, value, segments, scale, window, softcap)


def choose(impl: str, device_type: str, dtype: torch.dtype, *, widths: tuple[int, int] = (64, 64)) -> str:
    """The implementation that serves; RuntimeError where the one asked for cannot."""
    if impl == "auto":
        return next(each for each in IMPLS[1:] if why_not(each, device_type, dtype, widths=widths) is None)
    reason = why_not(impl, device_type, dtype, widths=widths)
    if reason is not None:
        raise RuntimeError(f"impl={impl!r} cannot serve this call: {reason}")
    return impl


def why_not(impl: str, device_type: str, dtype: torch.dtype, *, widths: tuple[int, int] = (64, 64)) -> str | None:
    """None where `impl` can serve such a call, else the reason in one line; `widths` of queries and of values."""
    if impl == "flex":
        return flex.why_not(device_type, dtype, widths)
    device = {"cpu": "cpu", "blocks": "cuda"}.get(impl, device_type)
    if device_type != device:
        return f"it runs on {device.upper()} tensors, got a tensor on {device_type}"
    return None


def _check_tensors(query: Tensor, key: Tensor, value: Tensor, segments: Segments) -> None:
    for name, x in (("query", query), ("key", key), ("value", value)):
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {_kind(x)}")
        if x.ndim != 3:
            raise ValueError(f"{name} must have shape (rows, heads, width), got {tuple(x.shape)}")
        if x.dtype != query.dtype:
            raise TypeError(f"{name} must have query's dtype {query.dtype}, got {x.dtype}")
        if x.device != query.device:
            raise ValueError(f"{name} must be on query's device {query.device}, got {x.device}")
    rows, heads, width = query.shape
    if key.shape[0] != rows or key.shape[2] != width:
        raise ValueError(f"key must have shape ({rows}, Hk, {width}), got {tuple(key.shape)}")
    if value.shape[:2] != key.shape[:2]:
        raise ValueError(f"value must have shape ({rows}, {key.shape[1]}, Dv), got {tuple(value.shape)}")
    if key.shape[1] == 0 or heads % key.shape[1]:
        raise ValueError(f"key: its heads must divide query's {heads}, got {key.shape[1]}")
    if width == 0 or value.shape[2] == 0:
        raise ValueError(f"query, value: expected columns, got widths {width} and {value.shape[2]}")
    if not isinstance(segments, Segments):
        raise TypeError(f"segments must be Segments, got {type(segments).__name__}")
    if segments.cu_seqlens.device != query.device:
        raise ValueError(
            f"segments must be on query's device {query.device}, got {segments.cu_seqlens.device}; use segments.to()"
        )
    if segments.position_ids.shape[0] != rows:
        raise ValueError(f"segments must have query's {rows} rows, got {segments.position_ids.shape[0]}")


def _check_numbers(scale: float | None, window: int | None, softcap: float | None) -> None:
    if scale is not None and not isinstance(scale, (int, float)):
        raise TypeError(f"scale must be a number or None, got {type(scale).__name__}")
    if window is not None and (not isinstance(window, int) or window < 1):
        raise ValueError(f"window must be None or an integer from 1 up, got {window!r}")
    if softcap is not None and not (isinstance(softcap, (int, float)) and 0 < softcap < math.inf):
        raise ValueError(f"softcap must be None or positive and finite, got {softcap!r}")


def _kind(x: object) -> str:
    return str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
