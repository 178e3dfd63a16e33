# SPDX-License-Identifier: Apache-2.0
"""`compress` and its three backwards (dense, in place, sparse), as torch calls them.

They are opaque to the compiler: a fake function that only does size arithmetic (no branch on a size, so dynamic shapes
never recompile), and a Python body that calls the backend that serves. What autograd and torch.func do with them is in
`gradients.py`.
"""

from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from ..backends import choose
from ..memory import in_memory
from ..schemas import LIBRARY
from . import cpu, reference

# Whatever the device, the body asks who serves: C++ on the CPU, Triton on CUDA, ROCm and XPU, the reference elsewhere.
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
    return _serving(impl, weight).compress(in_memory("weight", weight), *csr, plan)


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
    backend = _serving(impl, grad)
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
    backend = _serving(impl, grad)
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
    _serving(impl, grad).compress_backward_(rows, in_memory("grad", grad), *csr, plan)
    if rows is not into:
        into.copy_(rows)


def _serving(impl: str, tensor: Tensor) -> ModuleType:
    """The backend for a tensor (the embedding table or a gradient of its rows): a module with the functions above."""
    return _chosen(impl, tensor.device.type, tensor.dtype)


@cache
def _chosen(impl: str, device_type: str, dtype: torch.dtype) -> ModuleType:
    name = choose(impl, device_type, dtype)
    if name == "triton":
        from . import triton  # imports Triton

        return triton
    return cpu if name == "cpu" else reference


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
