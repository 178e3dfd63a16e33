# SPDX-License-Identifier: Apache-2.0
"""`tree_attention`: one decode step of all users, each row over its user's prompt and the rows on its path.

Validation reads shapes only, except on the CPU, so a CUDA graph can capture a call.
"""

from types import ModuleType

import torch
from torch import Tensor

from .. import backends
from ..backends import IMPLS, Impl
from ..dispatch import transformed
from ..memory import in_memory
from . import tree_cpu
from . import tree_reference as reference

NAMES = ("query", "key", "value", "cu_seqlens", "tree_key", "tree_value", "path", "cu_rows")


def tree_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    tree_key: Tensor,
    tree_value: Tensor,
    path: Tensor,
    cu_rows: Tensor,
    *,
    max_rows: int,
    max_seqlen: int,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Attention of the rows of trees, each tree behind one user's prompt: softmax(scale * q k) v over what a row sees.

    A row sees its own user's prompt, the rows on its path, and itself. On a GPU the prompt is read once for all rows
    of a user (as in Hydragen, arXiv 2402.05099) and split over programs (as in Flash-Decoding), and nothing waits for
    the device: a CUDA graph may capture the call and be replayed with other lengths and paths in the same tensors.
    The kernels must have been compiled by a call before the capture. Forward only.

    Args:
        query: (n, Hq, D); row r is user b's where `cu_rows[b] <= r < cu_rows[b + 1]`.
        key: (R, Hk, D) of the packed prompts, query's dtype. Hk divides Hq: query head h reads key head
            `h // (Hq // Hk)`. User b's are the rows `cu_seqlens[b]:cu_seqlens[b + 1]`; rows behind the last are not
            read.
        value: (R, Hk, D).
        cu_seqlens: (B + 1,) int32.
        tree_key: (S, Hk, D) of the rows of all trees, query's dtype.
        tree_value: (S, Hk, D), value's dtype.
        path: (n, A) int64: the tree's rows on the way to a row by depth, itself last, then -1. Entries outside [0, S)
            are not there.
        cu_rows: (B + 1,) int32.
        max_rows: no user has more rows. Need not be tight, as `max_seqlen` need not: they are the size of the launch.
        max_seqlen: no prompt is longer.
        scale: of the logits.
        window: a row sees itself and the `window - 1` positions before it, counted over prompt and path: the position
            of prompt row s is s, and that of `path[:, a]` is the prompt's length + a. None is no window.
        softcap: logits become `softcap * tanh(logits / softcap)`. None is no cap.
        impl: "cpu" on the CPU: torch's flash kernel on slices of the prompts, a user at a time, and PyTorch on paths.
            "triton" on a GPU; "reference" is one dense mask in PyTorch. "auto" is the first of them that serves; one
            asked for by name serves or raises.

    The columns of all tensors are adjacent; rows and heads may be any stride apart.

    Returns:
        (n, Hq, D) of value's dtype, contiguous, summed in float32 and rounded once (in 16 bits the kernels also round
        each weight, as FlashAttention does, and "cpu" what the prompt gives). Zeros for rows that are no user's.

    Raises:
        TypeError, ValueError: malformed input, naming the argument. On the CPU that covers the values of `cu_seqlens`
            and `cu_rows`. A GPU would have to wait for them, so there nothing outside the tensors is read, but rows of
            a user beyond `max_rows` are wrong.
        RuntimeError: `impl` cannot serve, or a gradient would be lost.
    """
    if impl not in IMPLS:
        raise ValueError(f"impl must be one of {', '.join(map(repr, IMPLS))}, got {impl!r}")
    tensors = (query, key, value, cu_seqlens, tree_key, tree_value, path, cu_rows)
    _check_tensors(*tensors)
    _check_numbers(max_rows, max_seqlen, scale, window, softcap)
    chosen = choose(impl, query.device.type, query.dtype)
    if not torch.compiler.is_compiling():
        _check_memory(dict(zip(NAMES, tensors, strict=True)), chosen)
    if query.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_offsets("cu_rows", cu_rows, query.shape[0], "max_rows", max_rows)
        _check_offsets("cu_seqlens", cu_seqlens, key.shape[0], "max_seqlen", max_seqlen)
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        raise RuntimeError("tree_attention has no gradient; call it under torch.no_grad()")
    sizes = {"max_rows": max_rows, "max_seqlen": max_seqlen, "scale": scale, "window": window, "softcap": softcap}
    made: Tensor = _module(chosen).tree_attention(*tensors, **sizes)
    return made


def choose(impl: Impl, device_type: str, dtype: torch.dtype) -> str:
    """The name of the backend that serves; raises RuntimeError where a named one cannot."""
    if impl == "auto" and device_type == "cpu":
        impl = "cpu"
    if impl == "auto":
        impl = "reference" if backends.why_not("triton", device_type, dtype) else "triton"
    if impl != "cpu":
        return backends.choose(impl, device_type, dtype)
    if device_type != "cpu":
        raise RuntimeError(f"impl='cpu' cannot serve this call: it runs on CPU tensors, got one on {device_type}")
    return impl


def _module(name: str) -> ModuleType:
    if name == "triton":
        from patchrec_kernels import tree_attention as kernels  # imports Triton

        return kernels
    return tree_cpu if name == "cpu" else reference


def _check_memory(tensors: dict[str, Tensor], chosen: str) -> None:
    """None was freed. A kernel reads memory: of no tangent, transform or trace, and without a pending negation."""
    if transformed():
        if chosen == "reference":
            return  # each operation of its own asks for memory
        raise RuntimeError(
            "tree_attention's kernel is not for torch.func, forward-mode AD or torch.jit.trace; use impl='reference'"
        )
    for name, x in tensors.items():
        if in_memory(name, x) is not x and chosen == "triton":
            raise ValueError(f"{name} is a view with a pending negation or zeros without memory; clone it")


def _check_tensors(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    tree_key: Tensor,
    tree_value: Tensor,
    path: Tensor,
    cu_rows: Tensor,
) -> None:
    for name, x in (("query", query), ("value", value)):
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {_kind(x)}")
    _check("query", query, ("n", "Hq", "D"), query.dtype, query)
    n, query_heads, columns = query.shape
    _check("key", key, ("R", "Hk", columns), query.dtype, query)
    rows, heads, _ = key.shape
    if heads == 0 or query_heads % heads:
        raise ValueError(f"key: its heads must divide query's {query_heads}, got {heads}")
    _check("value", value, (rows, heads, columns), value.dtype, query)
    _check("tree_key", tree_key, ("S", heads, columns), query.dtype, query)
    _check("tree_value", tree_value, (tree_key.shape[0], heads, columns), value.dtype, query)
    _check("path", path, (n, "A"), torch.int64, query)
    if path.shape[1] == 0 or (n and tree_key.shape[0] == 0):
        raise ValueError(f"path: a row is on its own path, got {path.shape[1]} columns, {tree_key.shape[0]} tree rows")
    _check("cu_rows", cu_rows, ("B + 1",), torch.int32, query)
    if cu_rows.shape[0] == 0:
        raise ValueError("cu_rows must have at least one element, got none")
    _check("cu_seqlens", cu_seqlens, tuple(cu_rows.shape), torch.int32, query)


def _check(name: str, x: Tensor, shape: tuple[int | str, ...], dtype: torch.dtype, query: Tensor) -> None:
    """A letter in `shape` is any size."""
    if not isinstance(x, Tensor) or x.dtype != dtype:
        raise TypeError(f"{name} must be a {dtype} tensor, got {_kind(x)}")
    sizes = zip(x.shape, shape, strict=False)
    if x.ndim != len(shape) or any(isinstance(size, int) and size != got for got, size in sizes):
        raise ValueError(f"{name} must have shape ({', '.join(map(str, shape))}), got {tuple(x.shape)}")
    if x.device != query.device:
        raise ValueError(f"{name} must be on query's device {query.device}, got {x.device}")
    if x.shape[-1] > 1 and x.stride(-1) != 1:
        raise ValueError(f"{name}: its last dimension must have stride 1, got strides {x.stride()}")


def _kind(x: object) -> str:
    return str(x.dtype) if isinstance(x, Tensor) else type(x).__name__


def _check_numbers(max_rows: int, max_seqlen: int, scale: float, window: int | None, softcap: float | None) -> None:
    for name, bound in (("max_rows", max_rows), ("max_seqlen", max_seqlen)):
        if not isinstance(bound, int) or bound < 0:
            raise ValueError(f"{name} must be an integer from 0 up, got {bound!r}")
    if not isinstance(scale, (int, float)):
        raise TypeError(f"scale must be a number, got {type(scale).__name__}")
    if window is not None and (not isinstance(window, int) or window < 1):
        raise ValueError(f"window must be None or an integer from 1 up, got {window!r}")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be None or positive, got {softcap!r}")


def _check_offsets(name: str, offsets: Tensor, size: int, bound_name: str, bound: int) -> None:
    steps = offsets.diff()
    if int(offsets[0]) != 0 or bool((steps < 0).any()) or int(offsets[-1]) > size:
        raise ValueError(f"{name} must rise from 0 to at most {size}, got {offsets.tolist()}")
    if steps.numel() and int(steps.max()) > bound:
        raise ValueError(f"{bound_name} must be at least what {name} has, {int(steps.max())}, got {bound}")
