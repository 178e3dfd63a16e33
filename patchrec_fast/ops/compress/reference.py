# SPDX-License-Identifier: Apache-2.0
"""`compress`, defined. Item patches are PatchRec eq. 3, session patches eq. 4."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .validate import check_values


def compress(
    weight: Tensor,
    ids: Tensor,
    token_offsets: Tensor,
    item_offsets: Tensor | None = None,
    plan: Sequence[Tensor] = (),
) -> Tensor:
    """Mean over a row's items of the mean over each item's token embeddings.

    Args:
        weight: (V, d), any floating dtype. Means accumulate in at least float32.
        ids: (T,) int32 or int64.
        token_offsets: (I+1,) where each item's tokens begin.
        item_offsets: (R+1,) where each row's items begin; None makes every item a row.
        plan: ignored; the kernels' precomputed schedule.

    Returns:
        (R, d) in weight's dtype, rounded once. Differentiable, twice as well; torch sums the gradient of a half
        precision table in half precision, which `compress_backward` below does not.
    """
    _check(ids, token_offsets, item_offsets, weight.shape[0])
    accumulate = _accumulation_dtype(weight)
    rows = (token_offsets if item_offsets is None else item_offsets).shape[0] - 1
    row, share = token_weights(ids, token_offsets, item_offsets, accumulate)
    # Divided before they are summed: a mean of finite numbers is finite.
    tokens = F.embedding(ids, weight).to(accumulate) * share.unsqueeze(1)  # (T, d)
    return tokens.new_zeros(rows, weight.shape[1]).index_add(0, row, tokens).to(weight.dtype)


def segment_of(offsets: Tensor, size: int) -> Tensor:
    """(S+1,) -> (size,): which segment each element is in."""
    segments = torch.arange(offsets.shape[0] - 1, device=offsets.device)
    return segments.repeat_interleave(offsets.diff(), output_size=size)


def token_weights(
    ids: Tensor, token_offsets: Tensor, item_offsets: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Each token's row (T,) int64 and its weight there (T,): 1 / (items in the row * tokens in the item)."""
    item = segment_of(token_offsets, ids.shape[0])  # (T,)
    counts = token_offsets.diff().to(dtype)[item]
    if item_offsets is None:
        return item, 1 / counts
    row_of_item = segment_of(item_offsets, token_offsets.shape[0] - 1)  # (I,)
    row = row_of_item[item]
    return row, 1 / (item_offsets.diff().to(dtype)[row] * counts)


def compress_backward_sparse(
    grad: Tensor,
    ids: Tensor,
    token_offsets: Tensor,
    item_offsets: Tensor | None,
    num_embeddings: int,
    plan: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """(U,) ascending int64 ids that occur, and (U, d) their gradients in grad's dtype."""
    unique, sums = _sums(grad, ids, token_offsets, item_offsets, num_embeddings)
    return unique, sums.to(grad.dtype)


def compress_backward(
    grad: Tensor,
    ids: Tensor,
    token_offsets: Tensor,
    item_offsets: Tensor | None,
    num_embeddings: int,
    plan: Sequence[Tensor] = (),
) -> Tensor:
    """(V, d): the gradient of the whole table."""
    unique, rows = compress_backward_sparse(grad, ids, token_offsets, item_offsets, num_embeddings)
    return grad.new_zeros(num_embeddings, grad.shape[1]).index_copy_(0, unique, rows)


def compress_backward_(
    into: Tensor,
    grad: Tensor,
    ids: Tensor,
    token_offsets: Tensor,
    item_offsets: Tensor | None,
    plan: Sequence[Tensor] = (),
) -> None:
    """into (V, d) += the gradient, rounded once."""
    unique, sums = _sums(grad, ids, token_offsets, item_offsets, into.shape[0])
    into.index_copy_(0, unique, (into[unique] + sums).to(into.dtype))


def _sums(
    grad: Tensor, ids: Tensor, token_offsets: Tensor, item_offsets: Tensor | None, num_embeddings: int
) -> tuple[Tensor, Tensor]:
    """(U,) the ids that occur and (U, d) their gradients, not rounded yet."""
    _check(ids, token_offsets, item_offsets, num_embeddings)
    accumulate = _accumulation_dtype(grad)
    row, share = token_weights(ids, token_offsets, item_offsets, accumulate)
    unique, inverse = ids.unique(return_inverse=True)
    sums = grad.new_zeros(unique.shape[0], grad.shape[1], dtype=accumulate)
    sums.index_add_(0, inverse, grad[row].to(accumulate) * share.unsqueeze(1))
    return unique.long(), sums


def _accumulation_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _check(ids: Tensor, token_offsets: Tensor, item_offsets: Tensor | None, rows: int) -> None:
    # Elsewhere than on the CPU reading the values would wait for the device; torch's own indexing asserts there.
    if ids.device.type == "cpu" and not torch.compiler.is_compiling():
        check_values(ids, token_offsets, item_offsets, rows)
