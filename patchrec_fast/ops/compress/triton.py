# SPDX-License-Identifier: Apache-2.0
"""The Triton backend: the operators' arguments become the kernels', with a plan if none is given.

Imported on first use only, because it imports Triton.
"""

from patchrec_kernels import compress as kernels
from torch import Tensor

from ..memory import in_memory
from .plan import Plan, plan_on_device


def compress(
    weight: Tensor,  # (V, d)
    ids: Tensor,  # (T,)
    token_offsets: Tensor,  # (I+1,)
    item_offsets: Tensor | None,  # (R+1,)
    plan: list[Tensor],
) -> Tensor:  # (R, d)
    made = _plan(plan, ids, token_offsets, item_offsets, weight.shape[0], gradient=False)
    if weight.stride(1) != 1:
        weight = weight.contiguous()
    return kernels.compress(weight, ids.contiguous(), made)


def compress_backward(
    grad: Tensor,  # (R, d)
    ids: Tensor,
    token_offsets: Tensor,
    item_offsets: Tensor | None,
    num_embeddings: int,
    plan: list[Tensor],
) -> Tensor:  # (V, d)
    made = _plan(plan, ids, token_offsets, item_offsets, num_embeddings)
    return kernels.compress_backward(grad.contiguous(), num_embeddings, made)


def compress_backward_sparse(
    grad: Tensor,  # (R, d)
    ids: Tensor,
    token_offsets: Tensor,
    item_offsets: Tensor | None,
    num_embeddings: int,
    plan: list[Tensor],
) -> tuple[Tensor, Tensor]:  # (U,), (U, d)
    """Without a plan from the host this waits for the device, to know how many ids there are."""
    made = _plan(plan, ids, token_offsets, item_offsets, num_embeddings)
    return kernels.compress_backward_sparse(grad.contiguous(), made)


def compress_backward_(
    into: Tensor,  # (V, d)
    grad: Tensor,  # (R, d)
    ids: Tensor,
    token_offsets: Tensor,
    item_offsets: Tensor | None,
    plan: list[Tensor],
) -> None:
    made = _plan(plan, ids, token_offsets, item_offsets, into.shape[0])
    kernels.compress_backward_(into, grad.contiguous(), made)


def _plan(
    tensors: list[Tensor],
    ids: Tensor,
    token_offsets: Tensor,
    item_offsets: Tensor | None,
    num_embeddings: int,
    gradient: bool = True,
) -> Plan:
    if tensors:
        return Plan.from_tensors([in_memory("plan", x) for x in tensors])
    return plan_on_device(ids, token_offsets, item_offsets, num_embeddings, gradient=gradient)
