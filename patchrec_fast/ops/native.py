# SPDX-License-Identifier: Apache-2.0
"""The library of csrc/, through ctypes: where it is, whether it fits, how it runs on torch's own threads.

It is `patchrec_fast/_native.so`, or where PATCHREC_FAST_NATIVE says, for builds of one's own. ISA dispatch is at run
time; PATCHREC_FAST_ISA=portable, avx2 or avx512 lowers it, for tests and for comparing.
"""

import ctypes
import os
import struct
import sys
import warnings
from functools import cache
from pathlib import Path

import torch

ABI_VERSION = 1
ISAS = ("portable", "avx2", "avx512")
_ASKED_FOR = os.environ.get("PATCHREC_FAST_NATIVE")
_LIBRARY = Path(_ASKED_FOR or Path(__file__).parents[1] / "_native.so")

# Structs of csrc go over as bytes: with cold caches a ctypes.Structure takes longer than a small call's own work.
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
        if (installed := _hidden()) is not None:
            reason = (
                f"the source in {_LIBRARY.parent} has no native kernels, and hides the installed package in "
                f"{installed}: run Python in another folder, or install the source itself: pip install --editable ."
            )
            warnings.warn(f"patchrec_fast is slow here: {reason}", RuntimeWarning, stacklevel=2)
            return reason
        return "the native kernels were not built; install a C++ compiler (g++ or clang++) and reinstall patchrec_fast"
    again = "build it again from this version's csrc/" if _ASKED_FOR else "reinstall patchrec_fast"
    try:
        found = ctypes.CDLL(str(_LIBRARY)).patchrec_abi_version()
        if found != ABI_VERSION:
            return f"{_LIBRARY.name} has ABI version {found}, expected {ABI_VERSION}; {again}"
        library()
    except (OSError, AttributeError) as error:  # no library, or one without a function of ours
        return f"{_LIBRARY.name} does not load ({error}); {again}"
    return None


def _hidden() -> Path | None:
    """A package of the same name, with its kernels, that is found on the path behind this one."""
    here = _LIBRARY.parent
    for other in (Path(entry, here.name) for entry in sys.path):
        if (other / _LIBRARY.name).is_file() and other.resolve() != here.resolve():
            return other
    return None


@cache
def library() -> ctypes.CDLL:
    """The library, with the types of its functions."""
    loaded = ctypes.CDLL(str(_LIBRARY))
    pointer, i32, i64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    batch = run = pointer
    table = (pointer, i64)  # data and row stride
    loaded.patchrec_best_isa.argtypes = ()
    loaded.patchrec_compress.argtypes = (batch, pointer, *table, i64, i32, run)
    loaded.patchrec_compress_backward.argtypes = (batch, *table, *table, i64, i32, i32, run)
    loaded.patchrec_transpose.argtypes = (batch, ctypes.POINTER(pointer), ctypes.POINTER(i64))
    loaded.patchrec_compress_backward_sparse.argtypes = (pointer, pointer, pointer, *table, i64, i32, run)
    loaded.patchrec_compress_backward_sparse.restype = None
    return loaded


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
    best = library().patchrec_best_isa()
    asked = os.environ.get("PATCHREC_FAST_ISA", ISAS[best])
    if asked not in ISAS:
        raise ValueError(f"PATCHREC_FAST_ISA must be one of {', '.join(ISAS)}, got {asked!r}")
    if ISAS.index(asked) > best:
        raise RuntimeError(f"PATCHREC_FAST_ISA={asked}: this CPU has at most {ISAS[best]}")
    return ISAS.index(asked)


def isa() -> str:
    """The instruction set in use."""
    return ISAS[_isa_index()]


def run() -> bytes:
    """patchrec_run: torch's threads, as many as it has, and the instruction set in use."""
    return _RUN.pack(_parallel_for() or 0, torch.get_num_threads(), _isa_index())
