# SPDX-License-Identifier: Apache-2.0
"""Where a kernel is launched: the device, and what the compiler is told of it."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
import triton
from torch import Tensor


@functools.cache
def target(device_type: str) -> tuple[str, int]:
    """Backend and threads in a warp; on the CPU the interpreter runs CUDA's tiles."""
    if device_type == "cpu":
        return "cuda", 32
    found = triton.runtime.driver.active.get_current_target()
    return found.backend, found.warp_size


def device_of(x: Tensor) -> Any:
    """Triton launches on the current device, which need not be the tensor's."""
    if x.device.type == "cpu":
        return contextlib.nullcontext()
    return torch.get_device_module(x.device).device(x.device)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many the device has; 8 on the CPU, where the interpreter runs one program after the other."""
    if device.type == "cpu":
        return 8
    properties = triton.runtime.driver.active.utils.get_device_properties(device.index)
    return int(properties["multiprocessor_count"])
