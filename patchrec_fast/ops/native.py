# SPDX-License-Identifier: Apache-2.0
"""The CPU backend: csrc/ through ctypes, on torch's own threads.

The library is `patchrec_fast/_native.so`, or where PATCHREC_FAST_NATIVE says, for builds of one's own. ISA
dispatch is at run time; PATCHREC_FAST_ISA=portable, avx2 or avx512 lowers it, for tests and for comparing.
"""

import contextlib
import ctypes
import mmap
import os
import struct
import weakref
from collections import deque
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .compress.validate import check_values

ABI_VERSION = 1
ISAS = ("portable", "avx2", "avx512")
_MALFORMED, _NO_MEMORY = 1, 2  # patchrec_status
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_ASKED_FOR = os.environ.get("PATCHREC_FAST_NATIVE")
_LIBRARY = Path(_ASKED_FOR or Path(__file__).parents[1] / "_native.so")


# The structs of csrc/compress.h, as bytes: ctypes.Structure took 30 us more of a call with cold caches.
_BATCH = struct.Struct("@PPPqqqqii")  # patchrec_batch: three arrays, four sizes, bytes of an id and of an offset
_RUN = struct.Struct("@Pii")  # patchrec_run: parallel_for, threads, isa


@cache
def why_not() -> str | None:
    """None where the library is there and fits, else the reason in one line.

    Raises:
        RuntimeError: PATCHREC_FAST_NATIVE names what is not there or does not fit. It was asked for by name.
    """
    reason = _why_not()
    if reason is not None and _ASKED_FOR:
        raise RuntimeError(f"PATCHREC_FAST_NATIVE={_ASKED_FOR}: {reason}")
    return reason


def _why_not() -> str | None:
    if not _LIBRARY.exists():
        if _ASKED_FOR:
            return "there is no such file"
        return "the native kernels were not built; install a C++ compiler (g++ or clang++) and reinstall patchrec_fast"
    again = "build it again from this version's csrc/" if _ASKED_FOR else "reinstall patchrec_fast"
    try:
        found = ctypes.CDLL(str(_LIBRARY)).patchrec_abi_version()
        if found != ABI_VERSION:
            return f"{_LIBRARY.name} has ABI version {found}, expected {ABI_VERSION}; {again}"
        _library()
    except (OSError, AttributeError) as error:  # no library, or one without a function of ours
        return f"{_LIBRARY.name} does not load ({error}); {again}"
    return None


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(_LIBRARY))
    pointer, i32, i64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    batch = run = pointer
    table = (pointer, i64)  # data and row stride
    library.patchrec_best_isa.argtypes = ()
    library.patchrec_compress.argtypes = (batch, pointer, *table, i64, i32, run)
    library.patchrec_compress_backward.argtypes = (batch, *table, *table, i64, i32, i32, run)
    library.patchrec_transpose.argtypes = (batch, ctypes.POINTER(pointer), ctypes.POINTER(i64))
    library.patchrec_compress_backward_sparse.argtypes = (pointer, pointer, pointer, *table, i64, i32, run)
    library.patchrec_compress_backward_sparse.restype = None
    return library


@cache
def _parallel_for() -> int | None:
    """Address of libtorch's `torch_parallel_for` (torch >= 2.10); None runs the kernels on one thread."""
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        path = Path(torch.__file__).parent / "lib" / name
        if path.exists():
            function = getattr(ctypes.CDLL(str(path)), "torch_parallel_for", None)
            return ctypes.cast(function, ctypes.c_void_p).value if function else None
    return None


@cache
def _isa_index() -> int:
    best = _library().patchrec_best_isa()
    asked = os.environ.get("PATCHREC_FAST_ISA", ISAS[best])
    if asked not in ISAS:
        raise ValueError(f"PATCHREC_FAST_ISA must be one of {', '.join(ISAS)}, got {asked!r}")
    if ISAS.index(asked) > best:
        raise RuntimeError(f"PATCHREC_FAST_ISA={asked}: this CPU has at most {ISAS[best]}")
    return ISAS.index(asked)


def isa() -> str:
    """The instruction set in use."""
    return ISAS[_isa_index()]


def compress(
    weight: Tensor,
    ids: Tensor,
    token_offsets: Tensor,
    item_offsets: Tensor | None,
    plan: Sequence[Tensor] = (),
) -> Tensor:
    """See `patchrec_fast.compress`; `plan` is for the GPU and not read here."""
    batch = _Csr(ids, token_offsets, item_offsets, weight.shape[0])
    weight, d = _rows(weight), weight.shape[1]
    out = _empty(batch.rows, d, weight.dtype)  # (R, d)
    status = _library().patchrec_compress(
        *(batch.struct, out.data_ptr(), weight.data_ptr(), weight.stride(0)),
        *(d, _DTYPES[weight.dtype], _run()),
    )
    batch.check(status)
    return out


def compress_backward_sparse(
    grad: Tensor,
    ids: Tensor,
    token_offsets: Tensor,
    item_offsets: Tensor | None,
    num_embeddings: int,
    plan: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """(U,) ascending int64 ids that occur, and (U, d) their gradients."""
    batch = _Csr(ids, token_offsets, item_offsets, num_embeddings)
    grad = batch.checked_grad(grad)
    handle, count = ctypes.c_void_p(), ctypes.c_int64()
    batch.check(_library().patchrec_transpose(batch.struct, ctypes.byref(handle), ctypes.byref(count)))
    unique = torch.empty(count.value, dtype=torch.int64, device="cpu")
    out = _empty(count.value, grad.shape[1], grad.dtype)  # (U, d)
    _library().patchrec_compress_backward_sparse(
        *(handle, unique.data_ptr(), out.data_ptr(), grad.data_ptr(), grad.stride(0)),
        *(grad.shape[1], _DTYPES[grad.dtype], _run()),
    )
    return unique, out


def compress_backward(
    grad: Tensor,
    ids: Tensor,
    token_offsets: Tensor,
    item_offsets: Tensor | None,
    num_embeddings: int,
    plan: Sequence[Tensor] = (),
) -> Tensor:
    """(V, d): the gradient of the whole table."""
    out = _lazy_zeros(num_embeddings, grad.shape[1], grad.dtype)
    _backward_into(out, grad, ids, token_offsets, item_offsets, accumulate=False)
    return out


def compress_backward_(
    into: Tensor,
    grad: Tensor,
    ids: Tensor,
    token_offsets: Tensor,
    item_offsets: Tensor | None,
    plan: Sequence[Tensor] = (),
) -> None:
    """into (V, d) += the gradient, each row read, added to in float32 and rounded once."""
    rows = _rows(into)
    _backward_into(rows, grad, ids, token_offsets, item_offsets, accumulate=True)
    if rows is not into:  # at an address that is no multiple of the element
        into.copy_(rows)


def _backward_into(
    into: Tensor,
    grad: Tensor,
    ids: Tensor,
    token_offsets: Tensor,
    item_offsets: Tensor | None,
    *,
    accumulate: bool,
) -> None:
    batch = _Csr(ids, token_offsets, item_offsets, into.shape[0])
    grad = batch.checked_grad(grad)
    status = _library().patchrec_compress_backward(
        *(batch.struct, into.data_ptr(), into.stride(0), grad.data_ptr(), grad.stride(0)),
        *(grad.shape[1], _DTYPES[grad.dtype], int(accumulate), _run()),
    )
    batch.check(status)


class _Csr:
    """A batch as the C struct, with the tensors it points into."""

    __slots__ = ("ids", "item_offsets", "num_embeddings", "rows", "struct", "token_offsets")

    def __init__(self, ids: Tensor, token_offsets: Tensor, item_offsets: Tensor | None, num_embeddings: int) -> None:
        if item_offsets is not None and item_offsets.dtype != token_offsets.dtype:
            item_offsets = item_offsets.to(token_offsets.dtype)
        self.ids = ids = ids.contiguous()
        self.token_offsets = token_offsets = token_offsets.contiguous()
        self.item_offsets = None if item_offsets is None else item_offsets.contiguous()
        self.num_embeddings = num_embeddings
        items = token_offsets.numel() - 1
        self.rows = items if item_offsets is None else item_offsets.numel() - 1
        if items < 0 or self.rows < 0:
            self.check(_MALFORMED)
        if num_embeddings >= 2**31 or self.rows >= 2**31:
            raise ValueError(
                f"the numbers of embeddings and of rows must be below 2**31, got {num_embeddings} and {self.rows}"
            )
        self.struct = _BATCH.pack(
            ids.data_ptr(),
            token_offsets.data_ptr(),
            0 if self.item_offsets is None else self.item_offsets.data_ptr(),
            ids.numel(),
            items,
            self.rows,
            num_embeddings,
            ids.element_size(),
            token_offsets.element_size(),
        )

    def checked_grad(self, grad: Tensor) -> Tensor:
        """The gradient of the output, rows contiguous, once its size is known to fit."""
        if grad.ndim != 2 or grad.shape[0] != self.rows:
            raise ValueError(f"grad must be ({self.rows}, d), got shape {tuple(grad.shape)}")
        return _rows(grad)

    def check(self, status: int) -> None:
        if status == _MALFORMED:
            check_values(self.ids, self.token_offsets, self.item_offsets, self.num_embeddings)  # names the fault
            raise RuntimeError("ids or offsets were malformed, and are not any more: another thread writes them")
        if status == _NO_MEMORY:
            raise MemoryError(f"no memory to group {self.ids.shape[0]} tokens by {self.num_embeddings} ids")


def _run() -> bytes:
    return _RUN.pack(_parallel_for() or 0, torch.get_num_threads(), _isa_index())


def _rows(x: Tensor) -> Tensor:
    """x where its rows are contiguous and aligned to the element (any row stride), else a copy that is."""
    if x.data_ptr() % x.element_size():
        return x.clone()
    return x if x.stride(1) == 1 else x.contiguous()


# From here on glibc maps fresh pages for every allocation, and faulting them in took 10 of the 14 ms that a forward of
# 64 users took. So blocks of that size are kept and handed out again, the last two of them.
_FRESH_PAGES = 32 << 20
_KEPT_BYTES = 256 << 20
# Threads share them without a lock: each operation on a deque is atomic, and a finalizer may run within any other.
_kept: deque[np.ndarray] = deque(maxlen=2)


def _empty(rows: int, d: int, dtype: torch.dtype) -> Tensor:
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


def _lazy_zeros(rows: int, d: int, dtype: torch.dtype) -> Tensor:
    """(rows, d) of zeros in pages that the operating system hands out zeroed when they are first touched.

    torch.zeros writes every page: 170 ms for the 525 MB of a 128k x 2048 bfloat16 table, of which a batch touches
    2 to 5 %; this takes 7 ms. The first pass over the whole gradient then maps the pages it reads (100 ms), so that
    backward and optimizer step together took 130 ms for 220 ms. Small pages, because a huge one is written whole
    for the one row in it that a batch touches.
    """
    size = rows * d * dtype.itemsize
    if size <= _FRESH_PAGES or not hasattr(mmap, "MADV_NOHUGEPAGE"):
        return torch.zeros(rows, d, dtype=dtype, device="cpu")
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(rows, d)
