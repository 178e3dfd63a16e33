# SPDX-License-Identifier: Apache-2.0
"""What a result must say about where it came from, and how fast the machine itself copies."""

import ctypes
import gc
import os
import platform
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .checkout import commit
from .harness import flush_cache

Facts = dict[str, str | int | float]


def facts() -> Facts:
    """Columns of every recorded row."""
    return {
        "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "commit": commit(),
        "threads": torch.get_num_threads(),
        "allocator": allocator(),
        "load": round(os.getloadavg()[0], 2),
    }


@cache
def cpu_name() -> str:
    """Model name, with family and model where the name says little ("AMD EPYC")."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    found = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", text, re.MULTILINE))
    if "model name" not in found:
        return platform.processor() or platform.machine()
    return f"{found['model name']} (family {found.get('cpu family')}, model {found.get('model')})"


def allocator() -> str:
    """Who serves big tensors: glibc maps fresh pages for each, unless told to keep its heap."""
    if preloaded := os.environ.get("LD_PRELOAD"):
        return Path(preloaded.split(":")[0]).name
    warm = os.environ.get("MALLOC_MMAP_MAX_") == "0" and "MALLOC_TRIM_THRESHOLD_" in os.environ
    name = platform.libc_ver()[0] or "system"
    return f"{name}, warm heap" if warm else name


def copy_speeds(table: Tensor, repeats: int = 5) -> dict[str, float]:
    """GB/s, medians: `memcpy` of 128 MiB between buffers touched before, and `random rows`.

    Random rows are 8,192 different ones of the whole table, gathered by index_select into memory
    touched before. Both count what is read and what is written.
    """
    source = torch.ones(128 << 20, dtype=torch.uint8)
    target = torch.zeros_like(source)
    ids = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))[:8192]
    rows = torch.zeros(len(ids), table.shape[1], dtype=table.dtype)
    table = table.detach()
    return {
        "memcpy": _speed(lambda: target.copy_(source), 2 * source.nbytes, repeats),
        "random rows": _speed(lambda: torch.index_select(table, 0, ids, out=rows), 2 * rows.nbytes, repeats),
    }


def _speed(call: Callable[[], object], moved: int, repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        flush_cache()
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return moved / float(np.median(seconds)) / 1e9


def peak_megabytes(call: Callable[[], object]) -> float:
    """How much a call adds to the process's resident memory at its highest, 10**6 bytes; NaN off Linux."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not clear.exists():
        return float("nan")
    gc.collect()
    _release_heap()
    clear.write_text("5")  # resets the high-water mark
    before = _kilobytes(status, "VmRSS")
    call()
    return (_kilobytes(status, "VmHWM") - before) * 1024 / 1e6


def _kilobytes(status: Path, name: str) -> int:
    return int(re.search(rf"^{name}:\s+(\d+) kB", status.read_text(), re.MULTILINE)[1])  # type: ignore[index]


def _release_heap() -> None:
    """Gives freed memory back, so that a peak is not hidden in what an earlier call left behind."""
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if release is not None:
        release(0)
