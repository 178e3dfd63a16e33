# SPDX-License-Identifier: Apache-2.0
"""Where a tensor's elements lie: what kernels must know that take addresses."""

from math import gcd

import torch
from torch import Tensor


def in_memory(name: str, x: Tensor) -> Tensor:
    """x with its values in its memory: a pending negation done, zeros that have no memory given some.

    Raises:
        ValueError: x's storage is smaller than its shape and strides claim, as one that was freed is.
    """
    if x._is_zerotensor():
        return x.clone()
    if x.is_contiguous():  # as nearly all are: no loop
        span = x.numel()
    else:
        span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    needed = (x.storage_offset() + span) * x.element_size()
    try:
        held = x.untyped_storage().nbytes()
    except NotImplementedError as error:
        alive = torch._C._functorch.unwrap_if_dead(x)  # out of a torch.func transform that has ended
        if alive is not x:
            return in_memory(name, alive)
        raise RuntimeError(
            f"{name} has no memory ({error}); is_grads_batched=True and vectorize=True are not supported, torch.func is"
        ) from None
    if held < needed and x.numel():
        raise ValueError(
            f"{name} has a storage of {held} bytes, expected at least the {needed} of shape {tuple(x.shape)} and "
            f"strides {x.stride()}; was it freed (storage.resize_(0), a sharded parameter outside its module)?"
        )
    return x.resolve_neg() if x.is_neg() else x


def overlaps_itself(x: Tensor) -> bool:
    """Whether two elements of x (N, d) are one place in memory, as in an expanded tensor."""
    (rows, columns), (down, along) = x.shape, x.stride()
    step = gcd(down, along)
    if step == 0:
        return rows * columns > 1
    # i * down + j * along = 0 first for i = along / step, j = -down / step.
    return along // step < rows and down // step < columns


def ranges_meet(a: Tensor, b: Tensor) -> bool:
    """Whether the memory from one's first to its last element and the other's have an address in common."""

    def ends(x: Tensor) -> tuple[int, int]:
        last = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
        return x.data_ptr(), x.data_ptr() + last * x.element_size()

    if a.numel() == 0 or b.numel() == 0:
        return False
    (a_first, a_last), (b_first, b_last) = ends(a), ends(b)
    return a_first <= b_last and b_first <= a_last
