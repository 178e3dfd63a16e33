# SPDX-License-Identifier: Apache-2.0
"""Memory of large tensors on the CPU, where faulting pages in is what takes the time."""

import contextlib
import mmap
import weakref
from collections import deque

import numpy as np
import torch
from torch import Tensor

# From here on glibc maps fresh pages for every allocation, and faulting them in takes longer than a forward's sums do.
# So blocks of that size are kept and handed out again, the last two of them.
_FRESH_PAGES = 32 << 20
_KEPT_BYTES = 256 << 20
# Threads share them without a lock: each operation on a deque is atomic, and a finalizer may run within any other.
_kept: deque[np.ndarray] = deque(maxlen=2)


def empty(rows: int, d: int, dtype: torch.dtype) -> Tensor:
    """(rows, d) uninitialised; large ones from memory that a freed tensor of ours gave back."""
    size = rows * d * dtype.itemsize
    # In deterministic mode torch fills what it hands out.
    if size <= _FRESH_PAGES or torch.are_deterministic_algorithms_enabled():
        return torch.empty(rows, d, dtype=dtype, device="cpu")
    block = _take(size + 64)
    start = -block.ctypes.data % 64  # on a cache line, as torch's own allocations are
    memory = block[start : start + size]
    # The tensor's storage owns `memory`, this array object and no other, so its end is the storage's.
    weakref.finalize(memory, _give_back, block).atexit = False
    return torch.from_numpy(memory).view(dtype).view(rows, d)


def _take(size: int) -> np.ndarray:
    """The smallest kept block of `size` to twice as many bytes, nobody else's from then on, or else a new one."""
    taken: list[np.ndarray] = []
    with contextlib.suppress(IndexError):
        while len(taken) < 2:
            taken.append(_kept.popleft())
    fitting = [i for i, block in enumerate(taken) if size <= block.size <= 2 * size]
    if fitting:
        block = taken.pop(min(fitting, key=lambda i: taken[i].size))
    else:
        block = np.empty(size + size // 8, dtype=np.uint8)
    _kept.extend(taken)
    return block


def _give_back(block: np.ndarray) -> None:
    if block.size <= _KEPT_BYTES:
        _kept.append(block)


def lazy_zeros(rows: int, d: int, dtype: torch.dtype) -> Tensor:
    """(rows, d) of zeros in pages that the operating system hands out zeroed when they are first touched.

    torch.zeros writes every page of a table of which a batch touches a few in a hundred. Here the first pass over the
    whole gradient maps the other pages when it reads them, and backward and optimizer step together still take less
    time. Small pages, because a huge one is written whole for the one row in it that a batch touches.
    """
    size = rows * d * dtype.itemsize
    if size <= _FRESH_PAGES or not hasattr(mmap, "MADV_NOHUGEPAGE"):
        return torch.zeros(rows, d, dtype=dtype, device="cpu")
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(rows, d)
