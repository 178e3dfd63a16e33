# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy of a linear layer's outputs, a block of the logits at a time, as one operator.

The N x V logits never exist. Forward cuts the rows and keeps each row's log-sum-exp. With it a logit's gradient,
softmax less target, needs no other logit, so backward makes the logits again (one product of matrices in four) and
cuts the vocabulary instead: each row of the weight's gradient is one product over all N rows, summed and rounded
once, and what accumulates in float32 is (N, d), not (V, d).

Losses are reduced in float32 whatever the weight's dtype: torch 2.13's own `linear_cross_entropy` gives its mean in
bfloat16, rounded to three digits. A compiler sees the operator as a whole: the number of blocks depends on N.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .schemas import LIBRARY

IGNORE = -100
# Logits that exist at a time: 523 rows of Llama 3's vocabulary, enough for full-speed products; 0.4 GB in bfloat16 and
# float32 together, and less again while they are reduced.
BLOCK = 2**26


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None, *, block: int | None = None
) -> Tensor:
    """`F.cross_entropy(F.linear(hidden, weight, bias).float(), labels, reduction="none")` in little memory.

    Under autocast the logits are of its dtype, as a linear layer's are.

    Args:
        hidden: (N, d), floating.
        weight: (V, d), of hidden's dtype.
        labels: (N,) int64 below V; -100 where a row does not count.
        bias: (V,).
        block: how many logits exist at a time, None for BLOCK; at least one row of them in the forward, and one
            column in the backward.

    Returns:
        (N,) float32 (float64 of float64), 0 where the label is -100. Differentiable once.

    Raises:
        ValueError: shapes that do not fit; block below 1.
        RuntimeError: a label that is neither -100 nor below V (on a GPU, an assertion of the device).
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden and weight: expected (N, d) and (V, d), got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if labels.shape != hidden.shape[:1]:
        raise ValueError(f"labels: expected one for each of the {len(hidden)} rows, got {tuple(labels.shape)}")
    block = BLOCK if block is None else block
    if block < 1:
        raise ValueError(f"block: expected a number of logits from 1, got {block}")
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return torch.ops.patchrec_fast.linear_cross_entropy(hidden, weight, bias, labels, block)[0]


def _forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, block: int
) -> tuple[Tensor, Tensor]:  # (N,), (N,)
    losses = hidden.new_empty(len(hidden), dtype=_wide(hidden))
    lse = torch.empty_like(losses)
    counts, target = _targets(labels)
    for rows in _blocks(len(hidden), block // len(weight)):
        logits = F.linear(hidden[rows], weight, bias).to(losses.dtype)  # (n, V)
        lse[rows] = logits.logsumexp(1)
        losses[rows] = lse[rows] - logits.gather(1, target[rows].unsqueeze(1)).squeeze(1)
    return losses.masked_fill_(~counts, 0), lse


def _backward(
    grad: Tensor,  # (N,)
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    lse: Tensor,
    block: int,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden, weight and bias, each empty where it is not wanted."""
    dhidden = torch.zeros_like(hidden, dtype=lse.dtype)
    dweight = weight.new_empty(weight.shape if wanted[1] else 0)
    dbias = weight.new_empty(len(weight) if wanted[2] else 0)
    counts, target = _targets(labels)
    grad = grad.masked_fill(~counts, 0).unsqueeze(1)  # (N, 1)
    row = torch.arange(len(hidden), device=hidden.device)
    for words in _blocks(len(weight), block // max(1, len(hidden))):
        part = None if bias is None else bias[words]
        dlogits = F.linear(hidden, weight[words], part).to(lse.dtype).sub_(lse.unsqueeze(1)).exp_()  # (N, v)
        inside = (target >= words.start) & (target < words.stop)
        dlogits[row, torch.where(inside, target - words.start, 0)] -= inside.to(lse.dtype)
        dlogits *= grad
        if wanted[2]:
            dbias[words] = dlogits.sum(0)
        rounded = dlogits.to(hidden.dtype)
        if wanted[1]:
            dweight[words] = rounded.mT @ hidden
        if wanted[0]:
            dhidden += rounded @ weight[words]
    return dhidden.to(hidden.dtype) if wanted[0] else hidden.new_empty(0), dweight, dbias


def _targets(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows count, and each row's label, 0 where it does not count."""
    counts = labels != IGNORE
    return counts, torch.where(counts, labels, 0)


def _blocks(total: int, at_once: int) -> Iterator[slice]:
    """Slices of `at_once` or fewer, at least 1, all but the last equally long."""
    size = -(-total // max(1, -(-total // max(1, at_once))))
    return (slice(start, min(start + size, total)) for start in range(0, total, max(1, size)))


def _wide(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


LIBRARY.impl("linear_cross_entropy", _forward, "CompositeExplicitAutograd")
LIBRARY.impl("linear_cross_entropy_backward", _backward, "CompositeExplicitAutograd")


@torch.library.register_fake("patchrec_fast::linear_cross_entropy")
def _(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, block: int) -> tuple[Tensor, Tensor]:
    losses = hidden.new_empty(hidden.shape[0], dtype=_wide(hidden))
    return losses, torch.empty_like(losses)


@torch.library.register_fake("patchrec_fast::linear_cross_entropy_backward")
def _(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    lse: Tensor,
    block: int,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        hidden.new_empty(hidden.shape if wanted[0] else 0),
        weight.new_empty(weight.shape if wanted[1] else 0),
        weight.new_empty(weight.shape[:1] if wanted[2] else 0),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.block = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    wanted = list(ctx.needs_input_grad[:3])
    made = torch.ops.patchrec_fast.linear_cross_entropy_backward(grad, *ctx.saved_tensors, ctx.block, wanted)
    return *(each if want else None for each, want in zip(made, wanted, strict=True)), None, None


def _no_gradient(ctx: Any, *_: Tensor) -> None:
    raise RuntimeError("linear_cross_entropy is differentiable once, not twice")


torch.library.register_autograd("patchrec_fast::linear_cross_entropy", _gradient, setup_context=_save)
torch.library.register_autograd("patchrec_fast::linear_cross_entropy_backward", _no_gradient)
