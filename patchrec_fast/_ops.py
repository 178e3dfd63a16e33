# SPDX-License-Identifier: Apache-2.0
"""Every operator's schema, shape function and gradient, and which backend runs it.

`compress` and its three backwards (dense, in place, sparse) are opaque to the compiler: a schema, a fake function
that only does size arithmetic (no branch on a size, so dynamic shapes never recompile), and a Python body that
calls the backend chosen by `_backends.py`. The dense gradient is registered here; the two other gradient modes
are eager-only and live in `ops/compress.py`.
"""

from typing import Any

import torch
from torch import Tensor

from . import _backends

_CSR = "Tensor ids, Tensor token_offsets, Tensor? item_offsets"

_LIBRARY = torch.library.Library("patchrec_fast", "DEF")
_LIBRARY.define(f"compress(Tensor weight, {_CSR}, Tensor[] plan, str impl) -> Tensor")
_LIBRARY.define(f"compress_backward(Tensor grad, {_CSR}, SymInt num_embeddings, Tensor[] plan, str impl) -> Tensor")
_LIBRARY.define(
    f"compress_backward_sparse(Tensor grad, {_CSR}, SymInt num_embeddings, Tensor[] plan, str impl) -> (Tensor, Tensor)"
)
_LIBRARY.define(f"compress_backward_(Tensor(a!) into, Tensor grad, {_CSR}, Tensor[] plan, str impl) -> ()")

# Whatever the device, the body asks `_backends` who serves: C++ on the CPU, Triton on CUDA, ROCm and XPU, the
# reference elsewhere.
_KEY = "CompositeExplicitAutograd"


def compress(
    weight: Tensor,  # (V, d)
    ids: Tensor,  # (T,)
    token_offsets: Tensor,  # (I+1,)
    item_offsets: Tensor | None,  # (R+1,)
    plan: list[Tensor],
    impl: str,
) -> Tensor:  # (R, d)
    return _backends.serving(impl, weight).compress(weight, ids, token_offsets, item_offsets, plan)


def compress_backward(
    grad: Tensor,  # (R, d)
    ids: Tensor,
    token_offsets: Tensor,
    item_offsets: Tensor | None,
    num_embeddings: int,
    plan: list[Tensor],
    impl: str,
) -> Tensor:  # (V, d)
    backend = _backends.serving(impl, grad)
    return backend.compress_backward(grad, ids, token_offsets, item_offsets, num_embeddings, plan)


def compress_backward_sparse(
    grad: Tensor,
    ids: Tensor,
    token_offsets: Tensor,
    item_offsets: Tensor | None,
    num_embeddings: int,
    plan: list[Tensor],
    impl: str,
) -> tuple[Tensor, Tensor]:  # (U,), (U, d)
    backend = _backends.serving(impl, grad)
    return backend.compress_backward_sparse(grad, ids, token_offsets, item_offsets, num_embeddings, plan)


def compress_backward_(
    into: Tensor,  # (V, d)
    grad: Tensor,
    ids: Tensor,
    token_offsets: Tensor,
    item_offsets: Tensor | None,
    plan: list[Tensor],
    impl: str,
) -> None:
    backend = _backends.serving(impl, grad)
    backend.compress_backward_(into, grad, ids, token_offsets, item_offsets, plan)


_LIBRARY.impl("compress", compress, _KEY)
_LIBRARY.impl("compress_backward", compress_backward, _KEY)
_LIBRARY.impl("compress_backward_sparse", compress_backward_sparse, _KEY)
_LIBRARY.impl("compress_backward_", compress_backward_, _KEY)


@torch.library.register_fake("patchrec_fast::compress")
def _(
    weight: Tensor,
    ids: Tensor,
    token_offsets: Tensor,
    item_offsets: Tensor | None,
    plan: list[Tensor],
    impl: str,
) -> Tensor:
    rows = token_offsets if item_offsets is None else item_offsets
    return weight.new_empty(rows.shape[0] - 1, weight.shape[1])


@torch.library.register_fake("patchrec_fast::compress_backward")
def _(
    grad: Tensor,
    ids: Tensor,
    token_offsets: Tensor,
    item_offsets: Tensor | None,
    num_embeddings: int,
    plan: list[Tensor],
    impl: str,
) -> Tensor:
    return grad.new_empty(num_embeddings, grad.shape[1])


@torch.library.register_fake("patchrec_fast::compress_backward_sparse")
def _(
    grad: Tensor,
    ids: Tensor,
    token_offsets: Tensor,
    item_offsets: Tensor | None,
    num_embeddings: int,
    plan: list[Tensor],
    impl: str,
) -> tuple[Tensor, Tensor]:
    unique = torch.library.get_ctx().new_dynamic_size()
    return ids.new_empty(unique, dtype=torch.int64), grad.new_empty(unique, grad.shape[1])


@torch.library.register_fake("patchrec_fast::compress_backward_")
def _(
    into: Tensor,
    grad: Tensor,
    ids: Tensor,
    token_offsets: Tensor,
    item_offsets: Tensor | None,
    plan: list[Tensor],
    impl: str,
) -> None:
    return None


_PLAIN = (Tensor, torch.nn.Parameter)


def dispatcher_needed(weight: Tensor, ids: Tensor) -> bool:
    """Whether something must see the registered op: a compiler, a tracing mode, a tensor subclass.

    Otherwise the bodies above are called as they are. The dispatcher's Python layers cost 8 us warm and 100 us
    with cold caches, as within a training step: a tenth of a forward of 16 users.
    """
    return (
        torch.compiler.is_compiling()
        or type(weight) not in _PLAIN
        or type(ids) not in _PLAIN
        or torch._C._len_torch_dispatch_stack() > 0
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weight, ids, token_offsets, item_offsets, plan, impl = inputs
    ctx.save_for_backward(ids, token_offsets, item_offsets, *plan)
    ctx.num_embeddings = weight.shape[0]
    ctx.impl = impl


def _dense_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    ids, token_offsets, item_offsets, *plan = ctx.saved_tensors
    dweight = torch.ops.patchrec_fast.compress_backward(
        grad, ids, token_offsets, item_offsets, ctx.num_embeddings, plan, ctx.impl
    )
    return dweight, None, None, None, [None] * len(plan), None


torch.library.register_autograd("patchrec_fast::compress", _dense_gradient, setup_context=_save)
