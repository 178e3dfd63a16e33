# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy of a linear layer's outputs, a block of the logits at a time, as one operator.

The vocabulary is cut into blocks of words, so that what is made of a block's logits is made while they are in the
cache: their share of each row's log-sum-exp forward, and backward, with a gradient that is softmax less target and
needs no other logit, both products of it. Each row of the weight's gradient is one product over all N rows, summed and
rounded once, and what accumulates in float32 is (N, d), not (V, d).

Between the two the N x V logits are kept, one copy where a dense loss has four; or, where they are more than KEEP, made
again (one product of matrices in four).

Losses are reduced in float32 whatever the weight's dtype: torch 2.13's own `linear_cross_entropy` gives its mean in
bfloat16, rounded to three digits. A compiler sees the operator as a whole: the number of blocks depends on N.
"""

from typing import Any

import torch
from torch import Tensor

from . import pages
from .log_sum_exp import log_sum_exp
from .schemas import LIBRARY

IGNORE = -100
# Logits of a block, by device: 2 MB in float32, which a core's cache holds; on a GPU, enough for full-speed products
# in few launches, 0.4 GB in bfloat16 and float32 together.
BLOCK, GPU_BLOCK = 2**19, 2**26
# Logits have a word's N side by side, on a GPU with room for a multiple of so many: its products want rows that begin
# at 16 bytes, whatever N is, and Triton's launches see no smaller multiple than 16 elements.
ALIGN, GPU_ALIGN = 1, 16
WORDS = 256  # of a block at least, where many rows make it larger than that: fewer are slow products
KEEP = 2**28  # logits that are kept at most: 2,093 rows of Llama 3's vocabulary, 1 GiB in float32


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    *,
    block: int | None = None,
    keep: bool | None = None,
) -> Tensor:
    """`F.cross_entropy(F.linear(hidden, weight, bias).float(), labels, reduction="none")` in little memory.

    Under autocast the logits are of its dtype, as a linear layer's are.

    Args:
        hidden: (N, d), floating.
        weight: (V, d), of hidden's dtype.
        labels: (N,) int64 below V; -100 where a row does not count.
        bias: (V,).
        block: how many logits are worked on at a time, at least those of one word; None for BLOCK and WORDS on a CPU,
            GPU_BLOCK elsewhere.
        keep: whether the logits stay for the backward; None for where it will come and they are at most KEEP.

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
    device = hidden.device.type
    if block is not None and block < 1:
        raise ValueError(f"block: expected a number of logits from 1, got {block}")
    if keep is None:
        keep = len(hidden) * len(weight) <= KEEP
    keep &= torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in (hidden, weight, bias))
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return torch.ops.patchrec_fast.linear_cross_entropy(hidden, weight, bias, labels, block, keep)[0]


def _forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, block: int | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:  # (N,), (N,), (V, N') or (0, N'), N' aligned
    rows = len(hidden)
    kept = _empty(len(weight) if keep else 0, _aligned(hidden), hidden)
    kept[:, rows:] = 0  # nobody reads it, but an operator's output is the same each time
    blocks, on_cpu = _blocks(hidden, len(weight), block), hidden.device.type == "cpu"
    made = _buffer(blocks, hidden, hidden.dtype)
    work = _buffer(blocks if on_cpu else [slice(0, 0)], hidden, _wide(hidden))
    counts, target = _targets(labels, len(weight))
    row = torch.arange(len(hidden), device=hidden.device)
    own = torch.zeros(len(hidden), dtype=work.dtype, device=work.device)  # the label's logit
    total = torch.zeros_like(own)  # of exp(logit - shift); the largest logit yet (on a GPU, the largest log-sum-exp of
    # a block), and shift, it where it is finite
    largest, shift = torch.full_like(own, -torch.inf), torch.zeros_like(own)
    for words in blocks:
        size = words.stop - words.start
        out = kept[words, :rows] if keep else made[:size]
        logits = _logits(hidden, weight, bias, words, out)  # (v, N)
        inside, place = _inside(target, words)
        own += logits[place, row].masked_fill_(~inside, 0)
        peak = logits.amax(0).to(work.dtype) if on_cpu else log_sum_exp(logits.mT)
        before, largest = largest, torch.maximum(largest, peak)
        shift = largest.masked_fill(largest.isinf(), 0)
        total *= (before - shift).exp_()
        total += torch.sub(logits, shift, out=work[:size]).exp_().sum(0) if on_cpu else (peak - shift).exp_()
    lse = total.log_().add_(shift)
    return (lse - own).masked_fill_(~counts, 0), lse, kept


def _backward(
    grad: Tensor,  # (N,)
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    lse: Tensor,
    kept: Tensor,
    block: int | None,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden, weight and bias, each empty where it is not wanted."""
    dhidden = torch.zeros_like(hidden, dtype=lse.dtype)
    dweight = weight.new_empty(weight.shape if wanted[1] else 0)
    dbias = weight.new_empty(len(weight) if wanted[2] else 0)
    blocks = _blocks(hidden, len(weight), block)
    made, work = (_buffer(blocks, hidden, dtype) for dtype in (hidden.dtype, _wide(hidden)))
    counts, target = _targets(labels, len(weight))
    grad = grad.masked_fill(~counts, 0)
    row = torch.arange(len(hidden), device=hidden.device)
    for words in blocks:
        size = words.stop - words.start
        logits = kept[words, : len(hidden)] if len(kept) else _logits(hidden, weight, bias, words, made[:size])
        dlogits = torch.sub(logits, lse, out=work[:size]).exp_()  # (v, N)
        inside, place = _inside(target, words)
        dlogits[place, row] -= inside.to(lse.dtype)
        dlogits *= grad
        if wanted[2]:
            dbias[words] = dlogits.sum(1)
        rounded = dlogits if dlogits.dtype == hidden.dtype else made[:size].copy_(dlogits)
        if wanted[1]:
            torch.mm(rounded, hidden, out=dweight[words])
        if wanted[0]:
            _add_product(dhidden, rounded.mT, weight[words])
    return dhidden.to(hidden.dtype) if wanted[0] else hidden.new_empty(0), dweight, dbias


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, words: slice, out: Tensor) -> Tensor:
    """(v, N)."""
    if bias is None:
        return torch.mm(weight[words], hidden.mT, out=out)
    return torch.addmm(bias[words].unsqueeze(1), weight[words], hidden.mT, out=out)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right; products of a narrower dtype are rounded to it, their sum is not."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _inside(target: Tensor, words: slice) -> tuple[Tensor, Tensor]:
    """Which rows' labels are among the words, and where, 0 for the others."""
    inside = (target >= words.start) & (target < words.stop)
    return inside, (target - words.start).masked_fill_(~inside, 0)


def _targets(labels: Tensor, words: int) -> tuple[Tensor, Tensor]:
    """Which rows count, and each row's label, 0 where it does not count; an error where a label is no word."""
    counts = labels != IGNORE
    target = torch.where(counts, labels, 0)
    target.new_empty(1).expand(words).gather(0, target)
    return counts, target


def _blocks(hidden: Tensor, words: int, block: int | None) -> list[slice]:
    """Slices of the vocabulary, all but the last equally long."""
    rows, cpu = max(1, len(hidden)), hidden.device.type == "cpu"
    most = (block or (BLOCK if cpu else GPU_BLOCK)) // rows
    most = max(most, WORDS if cpu and block is None else 1)
    size = -(-words // -(-words // most))
    return [slice(start, min(start + size, words)) for start in range(0, words, size)]


def _buffer(blocks: list[slice], hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """(v, N) for one block after another: allocated anew for each, its pages would take a CPU as long to map as the
    products that fill them."""
    return hidden.new_empty((blocks[0].stop, _aligned(hidden)), dtype=dtype)[:, : len(hidden)]


def _aligned(hidden: Tensor) -> int:
    """N, and what aligns it."""
    align = ALIGN if hidden.device.type == "cpu" else GPU_ALIGN
    return -(-hidden.shape[0] // align) * align


def _empty(words: int, width: int, hidden: Tensor) -> Tensor:
    """(words, width) of hidden's dtype."""
    if hidden.device.type == "cpu":
        return pages.empty(words, width, hidden.dtype)
    return hidden.new_empty((words, width))


def _wide(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


LIBRARY.impl("linear_cross_entropy", _forward, "CompositeExplicitAutograd")
LIBRARY.impl("linear_cross_entropy_backward", _backward, "CompositeExplicitAutograd")


@torch.library.register_fake("patchrec_fast::linear_cross_entropy")
def _(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, block: int | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    losses = hidden.new_empty(hidden.shape[0], dtype=_wide(hidden))
    kept = hidden.new_empty((weight.shape[0] if keep else 0, _aligned(hidden)))
    return losses, torch.empty_like(losses), kept


@torch.library.register_fake("patchrec_fast::linear_cross_entropy_backward")
def _(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    lse: Tensor,
    kept: Tensor,
    block: int | None,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        hidden.new_empty(hidden.shape if wanted[0] else 0),
        weight.new_empty(weight.shape if wanted[1] else 0),
        weight.new_empty(weight.shape[:1] if wanted[2] else 0),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.block, _ = inputs
    _, lse, kept = output
    ctx.save_for_backward(*tensors, lse, kept)
    ctx.mark_non_differentiable(lse, kept)
    ctx.set_materialize_grads(False)  # a zero for each logit that is kept


def _gradient(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Any, ...]:
    wanted = list(ctx.needs_input_grad[:3])
    made = torch.ops.patchrec_fast.linear_cross_entropy_backward(grad, *ctx.saved_tensors, ctx.block, wanted)
    return *(each if want else None for each, want in zip(made, wanted, strict=True)), None, None, None


def _no_gradient(ctx: Any, *_: Tensor) -> None:
    raise RuntimeError("linear_cross_entropy is differentiable once, not twice")


torch.library.register_autograd("patchrec_fast::linear_cross_entropy", _gradient, setup_context=_save)
torch.library.register_autograd("patchrec_fast::linear_cross_entropy_backward", _no_gradient)
