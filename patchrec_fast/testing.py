# SPDX-License-Identifier: Apache-2.0
"""Inputs, oracles and error budgets shared by tests and benchmarks."""

from typing import NamedTuple

import torch
from torch import Tensor

from .ops.compress import reference

UNIT_ROUNDOFF = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}


class Batch(NamedTuple):
    """A two-level CSR; item_offsets None is one level."""

    ids: Tensor  # (T,)
    token_offsets: Tensor  # (I+1,)
    item_offsets: Tensor | None  # (R+1,)

    @property
    def offsets(self) -> Tensor | tuple[Tensor, Tensor]:
        """As `compress` takes them."""
        return self.token_offsets if self.item_offsets is None else (self.token_offsets, self.item_offsets)


def ragged_batch(
    rows: int,
    num_embeddings: int,
    *,
    levels: int = 2,
    max_items: int = 6,
    max_tokens: int = 5,
    hot: float = 0.2,
    id_dtype: torch.dtype = torch.int32,
    offset_dtype: torch.dtype = torch.int32,
    seed: int = 0,
) -> Batch:
    """Random lengths from zero up, a tenth of the rows raw tokens, and one id that takes `hot` of all tokens."""
    generator = torch.Generator().manual_seed(seed)

    def lengths(count: int, most: int) -> Tensor:
        return torch.randint(0, most + 1, (count,), generator=generator)

    def partition(sizes: Tensor) -> Tensor:
        return torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])

    items = lengths(rows, max_items) if levels == 2 else torch.ones(rows, dtype=torch.int64)
    raw = torch.rand(rows, generator=generator) < 0.1
    items[raw] = 1
    item_offsets = partition(items)
    tokens = lengths(int(item_offsets[-1]), max_tokens)
    tokens[item_offsets[:-1][raw]] = 1
    token_offsets = partition(tokens)
    ids = torch.randint(0, num_embeddings, (int(token_offsets[-1]),), generator=generator)
    ids[torch.rand(ids.shape[0], generator=generator) < hot] = num_embeddings // 2
    return Batch(
        ids.to(id_dtype),
        token_offsets.to(offset_dtype),
        item_offsets.to(offset_dtype) if levels == 2 else None,
    )


def forward_budget(weight: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """The float64 result (R, d), and how far a float32 sum rounded once may be from it.

    n products and sums in float32 err by at most (n + 2) u32 * sum |w x| (Higham, Accuracy and Stability, 3.1; the
    weight's own division adds one more u32), and the final rounding by u |result|.
    """
    exact = reference.compress(weight.double(), *batch)
    magnitude = reference.compress(weight.double().abs(), *batch)
    row, _ = reference.token_weights(*batch, torch.float64)
    n = torch.bincount(row, minlength=exact.shape[0]).unsqueeze(1)  # (R, 1) tokens of each row
    return exact, _budget(exact, magnitude, n, weight.dtype)


def backward_budget(grad: Tensor, batch: Batch, num_embeddings: int) -> tuple[Tensor, Tensor]:
    """The float64 gradient (V, d) of the table, and the same bound over each id's occurrences."""
    exact = reference.compress_backward(grad.double(), *batch, num_embeddings)
    magnitude = reference.compress_backward(grad.double().abs(), *batch, num_embeddings)
    n = torch.bincount(batch.ids.long(), minlength=num_embeddings).unsqueeze(1)
    return exact, _budget(exact, magnitude, n, grad.dtype)


def _budget(exact: Tensor, magnitude: Tensor, n: Tensor, dtype: torch.dtype) -> Tensor:
    summed = (n + 3) * UNIT_ROUNDOFF[torch.float32] * magnitude
    subnormal = 2.0**-25 if dtype == torch.float16 else 0.0  # half of float16's smallest step
    return summed + UNIT_ROUNDOFF[dtype] * (exact.abs() + summed) + subnormal


def assert_within(actual: Tensor, exact: Tensor, budget: Tensor) -> None:
    """Every element within its own bound; NaN is not."""
    error = (actual.double() - exact).abs()
    bad = ~(error <= budget)
    if bool(bad.any()):
        worst = int((error - budget).nan_to_num(torch.inf).argmax())
        row, column = divmod(worst, exact.shape[1])
        raise AssertionError(
            f"{int(bad.sum())} of {bad.numel()} elements out of bounds; at [{row}, {column}]: "
            f"got {actual[row, column]}, exact {exact[row, column]}, allowed {budget[row, column]:.3g}"
        )
