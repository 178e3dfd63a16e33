# SPDX-License-Identifier: Apache-2.0
"""A device and its meters: what it is, how fast it copies and multiplies, and what a call on it takes.

Each meter serves the CPU too, so that a script can be tried without a GPU; what only a GPU has is NaN or empty there.
"""

import subprocess
import time
import warnings
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from patchrec_fast import info

from . import machine
from .harness import Call
from .results import Row

# Dense bfloat16, in 10**12 operations a second, from the vendors' data sheets; the first whose name fits.
SHEETS = {
    "A100": 312.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H200": 989.0,
    "B200": 2250.0,
    "MI300X": 1307.0,
}
Sampler = Callable[[Call, int], tuple[float, bool]]
"""(seconds, disturbed) of a call in a round."""
_WAIT_CYCLES = 10_000_000  # some milliseconds, in which the host queues the sample's launches, 250 without a plan


def name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else machine.cpu_name()


def sheet_tflops(name: str) -> float:
    """Of a device by its name; NaN where it is not known."""
    return next((peak for key, peak in SHEETS.items() if key in name), float("nan"))


def facts(device: str, sheet: float | None = None) -> Row:
    """Columns of each row: what the device is, by its own word and the data sheet's.

    Args:
        sheet: 10**12 operations a second of dense bfloat16, for a device that SHEETS does not know.
    """
    on_gpu, versions = device == "cuda", info.versions()
    memory = torch.cuda.get_device_properties(0).total_memory if on_gpu else 0
    return {
        "gpu": name(device),
        "gpu_gb": round(memory / 1e9, 1),
        "driver": _driver() if on_gpu else "",
        "triton": versions["triton"],
        "transformers": versions["transformers"],
        "sheet_tflops": sheet or sheet_tflops(name(device)),
    }


def peaks(device: str) -> Row:
    """Columns of each row: what this very device was measured to do at most."""
    return {"matmul_tflops": round(matmul_tflops(device), 1), "copy_gb_s": round(copy_gb_s(device), 1)}


def _driver() -> str:
    """NVIDIA's or AMD's driver, as their own programs name it; "unknown" where neither is there."""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        shown = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return f"HIP {torch.version.hip}" if torch.version.hip else "unknown"
    return shown.split("\n")[0].strip() or "unknown"


@cache
def matmul_tflops(device: str, samples: int = 20) -> float:
    """The median of bfloat16 products of two square matrices, of side 8,192 on a GPU: 10**12 operations a second."""
    side = 8192 if device == "cuda" else 256
    a, b = (torch.randn(side, side, dtype=torch.bfloat16, device=device) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / median_seconds(lambda: torch.mm(a, b, out=out), device, samples) / 1e12


@cache
def copy_gb_s(device: str, samples: int = 20) -> float:
    """The median of copies of 1 GiB on a GPU, read and written counted: 10**9 bytes a second."""
    source = torch.zeros(2**30 if device == "cuda" else 2**25, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return 2 * source.nbytes / median_seconds(lambda: target.copy_(source), device, samples) / 1e9


def median_seconds(call: Callable[[], object], device: str, samples: int = 20) -> float:
    """Of calls behind three that are not counted."""
    for _ in range(3):
        call()
    take = sampler(device)
    return float(np.median([take(lambda round_: call(), number)[0] for number in range(samples)]))


def sampler(device: str) -> Sampler:
    """For `harness.measure`: device time of a call whose launches do not wait for the host; on a CPU wall time."""
    return between_events if device == "cuda" else wall_sampler(device)


def between_events(call: Call, round_: int) -> tuple[float, bool]:
    """(seconds, False) between two events; the device sleeps first, so that launches are queued."""
    flush_cache()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(_WAIT_CYCLES)
    start.record()
    result = call(round_)
    end.record()
    torch.cuda.synchronize()
    del result
    return start.elapsed_time(end) * 1e-3, False


def wall_sampler(device: str) -> Sampler:
    """For `harness.measure`: wall time of a call, host and device; nothing is taken again."""

    def sample(call: Call, round_: int) -> tuple[float, bool]:
        synchronize(device)
        began = time.perf_counter()
        result = call(round_)
        synchronize(device)
        seconds = time.perf_counter() - began
        del result
        return seconds, False

    return sample


def wall_ms(call: Call, device: str, repeats: int = 10) -> float:
    """Milliseconds of wall time a call, one after another without a wait between them."""
    call(0)
    synchronize(device)
    began = time.perf_counter()
    for round_ in range(repeats):
        call(round_)
    synchronize(device)
    return (time.perf_counter() - began) / repeats * 1e3


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@cache
def _l2() -> Tensor:
    return torch.zeros(64 << 20, device="cuda")  # 256 MiB, more than any L2


def flush_cache() -> None:
    _l2().add_(1)


def peak_megabytes(call: Callable[[], object], device: str) -> float | None:
    """10**6 bytes that a call adds at its highest; None where it does not fit the device's memory."""
    if device == "cpu":
        return machine.peak_megabytes(call)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    try:
        call()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def waits(call: Call, device: str) -> float:
    """How often a call makes the host wait for the device; NaN on a CPU."""
    if device == "cpu":
        return float("nan")
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            call(0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in seen)


def profile(call: Call, device: str, calls: int = 3) -> str:
    """Operators and kernels by time."""
    from torch.profiler import profile as profiler

    call(0)
    with profiler() as seen:
        for round_ in range(calls):
            call(round_)
        synchronize(device)
    order = "device_time_total" if device == "cuda" else "self_cpu_time_total"
    return f"{calls} calls\n{seen.key_averages().table(sort_by=order, row_limit=25)}"


def alive(device: str) -> bool:
    """Whether the device still answers: after an address out of bounds a process gets nothing more from a GPU."""
    try:
        synchronize(device)
    except RuntimeError:
        return False
    return True
