# SPDX-License-Identifier: Apache-2.0
"""No time is taken of a wrong answer: every contestant against the reference in float64, first."""

from dataclasses import replace

import torch
from torch import Tensor

from patchrec_fast import PackedBatch
from patchrec_fast.ops.compress import make_plan, reference

from .peers import Contestant
from .peers.csr import levels, owners

_EXTRA_ROUNDINGS = 8  # beside the additions: two divisions or one weight and one product, the result


class WrongAnswer(AssertionError):
    """A contestant is not the op, so its time means nothing."""


def check(contestant: Contestant, batch: PackedBatch, dtype: torch.dtype, width: int = 16) -> None:
    """Forward and gradient against the reference in float64 on the same (rounded) inputs.

    The tolerance is the rounding of any order of summation and nothing more: an element that is the
    sum of n products is off by at most g(n + 8) * (sum of their magnitudes), where g(k) =
    k * u / (1 - k * u) and u is half the dtype's epsilon (Higham, Accuracy and Stability, section
    3.1), plus the same of the reference in float64. Where k * u reaches 1, as in a bfloat16 sum of
    250 terms, it bounds nothing; the check in float64 is what holds there.

    Raises:
        WrongAnswer: naming the contestant, the dtype and the largest error.
    """
    generator = torch.Generator().manual_seed(0)
    batch, vocabulary = _renumbered(batch)
    rows, device = len(batch.position_ids), batch.ids.device
    weight = torch.randn(vocabulary, width, generator=generator).to(device, dtype).requires_grad_()
    upstream = torch.randn(rows, width, generator=generator).to(device, dtype)

    weight.grad = torch.zeros_like(weight)  # so that adding into a gradient in place is checked too
    out = contestant.compress(weight, contestant.prepare(batch, dtype))
    out.backward(upstream)

    csr = levels(batch)
    expected, expected_gradient = _reference(weight, upstream, csr)
    magnitude, magnitude_gradient = _reference(weight.detach().abs(), upstream.abs(), csr)
    row_terms = torch.bincount(owners(csr[1][csr[2]]), minlength=rows)
    id_terms = torch.bincount(csr[0], minlength=vocabulary)
    for part, got, want, size, terms in (
        ("output", out.detach(), expected, magnitude, row_terms),
        ("gradient", weight.grad, expected_gradient, magnitude_gradient, id_terms),
    ):
        _compare(f"{contestant.name}, {part} in {dtype}", got, want, size, terms)


def _renumbered(batch: PackedBatch) -> tuple[PackedBatch, int]:
    """The batch with its U distinct ids numbered from 0, and U + 1: one id never occurs.

    A table of 128,000 rows would take the per-item loop minutes.
    """
    distinct, ids = batch.ids.unique(return_inverse=True)
    ids = ids.to(batch.ids.dtype)
    plan = None
    if batch.plan is not None:
        token_offsets, item_offsets = batch.offsets
        plan = make_plan(ids.cpu(), (token_offsets.cpu(), item_offsets.cpu())).to(ids.device)
    return replace(batch, ids=ids, plan=plan), len(distinct) + 1


def _reference(weight: Tensor, upstream: Tensor, csr: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    exact = weight.detach().double().requires_grad_()
    out = reference.compress(exact, *csr)
    return out.detach(), torch.autograd.grad(out, exact, upstream.double())[0]


def _growth(steps: Tensor, dtype: torch.dtype) -> Tensor:
    k = steps * torch.finfo(dtype).eps / 2
    return torch.where(k < 1, k / (1 - k), torch.inf)


def _compare(what: str, got: Tensor, want: Tensor, magnitude: Tensor, terms: Tensor) -> None:
    if got.shape != want.shape:
        raise WrongAnswer(f"{what}: got shape {tuple(got.shape)}, expected {tuple(want.shape)}")
    steps = terms.double() + _EXTRA_ROUNDINGS
    bound = (_growth(steps, got.dtype) + _growth(steps, want.dtype)).unsqueeze(1) * magnitude
    bound.nan_to_num_(nan=0.0, posinf=torch.inf)  # inf * 0: nothing was summed
    error = (got.double() - want).abs()
    wrong = ~(error <= bound)  # so that NaN is wrong
    if wrong.any():
        at = int(torch.where(wrong, error.nan_to_num(torch.inf), -1).argmax())
        row, column = divmod(at, got.shape[1])
        raise WrongAnswer(
            f"{what}: {int(wrong.sum())} of {wrong.numel()} elements are wrong; [{row}, {column}] is "
            f"{got[row, column]:.6g}, expected {want[row, column]:.6g} within {bound[row, column]:.2g}"
        )
