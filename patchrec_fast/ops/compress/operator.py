# SPDX-License-Identifier: Apache-2.0
"""Every operator's schema, shape function and gradient, and which backend runs it.

`compress` and its three backwards (dense, in place, sparse) are opaque to the compiler: a schema, a fake function
that only does size arithmetic (no branch on a size, so dynamic shapes never recompile), and a Python body that
calls the backend chosen by `ops/backends.py`. What autograd and torch.func do with them is in `gradients.py`.
"""

from types import NoneType

import torch
from torch import Tensor

from .. import backends
from .validate import in_memory

_CSR = "Tensor ids, Tensor token_offsets, Tensor? item_offsets"

LIBRARY = torch.library.Library("patchrec_fast", "DEF")
LIBRARY.define(f"compress(Tensor weight, {_CSR}, Tensor[] plan, str impl) -> Tensor")
LIBRARY.define(f"compress_backward(Tensor grad, {_CSR}, SymInt num_embeddings, Tensor[] plan, str impl) -> Tensor")
LIBRARY.define(
    f"compress_backward_sparse(Tensor grad, {_CSR}, SymInt num_embeddings, Tensor[] plan, str impl) -> (Tensor, Tensor)"
)
LIBRARY.define(f"compress_backward_(Tensor(a!) into, Tensor grad, {_CSR}, Tensor[] plan, str impl) -> ()")

# Whatever the device, the body asks `backends` who serves: C++ on the CPU, Triton on CUDA, ROCm and XPU, the
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
    csr = _in_memory(ids, token_offsets, item_offsets)
    return backends.serving(impl, weight).compress(in_memory("weight", weight), *csr, plan)


def compress_backward(
    grad: Tensor,  # (R, d)
    ids: Tensor,
    token_offsets: Tensor,
    item_offsets: Tensor | None,
    num_embeddings: int,
    plan: list[Tensor],
    impl: str,
) -> Tensor:  # (V, d)
    csr = _in_memory(ids, token_offsets, item_offsets)
    backend = backends.serving(impl, grad)
    return backend.compress_backward(in_memory("grad", grad), *csr, num_embeddings, plan)


def compress_backward_sparse(
    grad: Tensor,
    ids: Tensor,
    token_offsets: Tensor,
    item_offsets: Tensor | None,
    num_embeddings: int,
    plan: list[Tensor],
    impl: str,
) -> tuple[Tensor, Tensor]:  # (U,), (U, d)
    csr = _in_memory(ids, token_offsets, item_offsets)
    backend = backends.serving(impl, grad)
    return backend.compress_backward_sparse(in_memory("grad", grad), *csr, num_embeddings, plan)


def compress_backward_(
    into: Tensor,  # (V, d)
    grad: Tensor,
    ids: Tensor,
    token_offsets: Tensor,
    item_offsets: Tensor | None,
    plan: list[Tensor],
    impl: str,
) -> None:
    csr = _in_memory(ids, token_offsets, item_offsets)
    rows = in_memory("weight.grad", into)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    backends.serving(impl, grad).compress_backward_(rows, in_memory("grad", grad), *csr, plan)
    if rows is not into:
        into.copy_(rows)


def _in_memory(ids: Tensor, token_offsets: Tensor, item_offsets: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    items = None if item_offsets is None else in_memory("item_offsets", item_offsets)
    return in_memory("ids", ids), in_memory("token_offsets", token_offsets), items


LIBRARY.impl("compress", compress, _KEY)
LIBRARY.impl("compress_backward", compress_backward, _KEY)
LIBRARY.impl("compress_backward_sparse", compress_backward_sparse, _KEY)
LIBRARY.impl("compress_backward_", compress_backward_, _KEY)


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


PLAIN = (Tensor, torch.nn.Parameter, NoneType)


def dispatcher_needed(*tensors: Tensor | None) -> bool:
    """Whether something must see the registered op: a compiler, a tracer, a mode, a transform, a tensor subclass.

    Otherwise the bodies above are called as they are. The dispatcher's Python layers cost 8 us warm and 100 us
    with cold caches, as within a training step: a tenth of a forward of 16 users.
    """
    return (
        torch.compiler.is_compiling()
        or any(type(x) not in PLAIN for x in tensors)
        or torch._C._len_torch_dispatch_stack() > 0
        or transformed()
    )


def transformed() -> bool:
    """Whether a torch.func transform, torch.jit.trace or forward-mode AD is at work."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or forward_ad()
    )


def forward_ad() -> bool:
    """Whether tensors may carry tangents."""
    return torch.autograd.forward_ad._current_level >= 0
