# SPDX-License-Identifier: Apache-2.0
"""The most memory that a piece of work took: allocated on a GPU, resident on a CPU."""

import sys
from pathlib import Path

import torch

ALLOCATED = "allocated by torch on the GPU"
RESIDENT = "resident in the process"
RESIDENT_EVER = "resident in the process since it began"

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Starts to watch when it is made.

    On a CPU it is the whole process, which holds more than torch's tensors and keeps some of what was freed. Linux
    lets the mark be put back to what is resident now; elsewhere it is the highest since the process began.

    Attributes:
        kind: what `bytes` counts, in words.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.kind = ALLOCATED
        else:
            self.kind = RESIDENT if _put_back() else RESIDENT_EVER

    def bytes(self) -> int:
        """The peak since this was made."""
        if self.kind == ALLOCATED:
            return torch.cuda.max_memory_allocated(self._device)
        if self.kind == RESIDENT:
            return _high_water_mark()
        import resource  # not on Windows, where it says so

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _put_back() -> bool:
    try:
        _CLEAR.write_text("5")  # proc(5): resets VmHWM
    except OSError:
        return False
    return True


def _high_water_mark() -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
