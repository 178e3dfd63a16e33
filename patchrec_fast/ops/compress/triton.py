# SPDX-License-Identifier: Apache-2.0
"""The Triton backend: the operators' arguments become the kernels', with a plan if none is given.

Imported on first use only, because it imports Triton.
"""

from patchrec_kernels import compress as kernels
from torch import Tensor

from ..memory import in_memory
from .plan import plan_on_device


def compress(
    weight: Tensor,  # (V, d)
    ids: Tensor,  # (T,)
    token_offsets: Tensor,  # (I+1,)
    item_offsets: Tensor | None,  # (R+1,)
    plan: list[Tensor],
) -> Tensor:  # (R, d)
    if plan:
        plan = [in_memory("plan", x) for x in plan]
    else:
        plan = plan_on_device(ids, token_offsets, item_offsets, weight.shape[0], gradient=False).tensors()
    if weight.stride(1) != 1:
        weight = weight.contiguous()
    return kernels.compress(weight, ids.contiguous(), plan)


def compress_backward(
    grad: Tensor,  # (R, d)
    ids: Tensor,
    token_offsets: Tensor,
    item_offsets: Tensor | None,
    num_embeddings: int,
    plan: list[Tensor],
) -> Tensor:  # (V, d)
    plan = _plan(plan, ids, token_offsets, item_offsets, num_embeddings)
    return kernels.compress_backward(grad.contiguous(), num_embeddings, plan)


def compress_backward_sparse(
    grad: Tensor,  # (R, d)
    ids: Tensor,
    token_offsets: Tensor,
    item_offsets: Tensor | None,
    num_embeddings: int,
    plan: list[Tensor],
) -> tuple[Tensor, Tensor]:  # (U,), (U, d)
    """Without a plan from the host this waits for the device, to know how many ids there are."""
    plan = _plan(plan, ids, token_offsets, item_offsets, num_embeddings)
    return kernels.compress_backward_sparse(grad.contiguous(), plan)


def compress_backward_(
    into: Tensor,  # (V, d)
    grad: Tensor,  # (R, d)
    ids: Tensor,
    token_offsets: Tensor,
    item_offsets: Tensor | None,
    plan: list[Tensor],
) -> None:
    plan = _plan(plan, ids, token_offsets, item_offsets, into.shape[0])
    kernels.compress_backward_(into, grad.contiguous(), plan)


def _plan(
    plan: list[Tensor], ids: Tensor, token_offsets: Tensor, item_offsets: Tensor | None, num_embeddings: int
) -> list[Tensor]:
    if plan:
        return [in_memory("plan", x) for x in plan]
    return plan_on_device(ids, token_offsets, item_offsets, num_embeddings).tensors()
