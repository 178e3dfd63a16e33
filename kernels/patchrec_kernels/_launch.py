# SPDX-License-Identifier: Apache-2.0
"""Where a kernel is launched: the device, and what the compiler is told of it."""

from __future__ import annotations

import contextlib
import functools
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget


@functools.cache
def target(device_type: str) -> GPUTarget:
    """What the compiler makes binaries for; on the CPU the interpreter runs the tiles of a Hopper."""
    if device_type == "cpu":
        return GPUTarget("cuda", 90, 32)
    return triton.runtime.driver.active.get_current_target()


def device_of(x: Tensor) -> Any:
    """Triton launches on the current device, which need not be the tensor's."""
    if x.device.type == "cpu":
        return contextlib.nullcontext()
    return torch.get_device_module(x.device).device(x.device)


class Device(NamedTuple):
    """What a launch is cut to."""

    multiprocessors: int
    shared_bytes: int  # the most that one program can have


@functools.cache
def device_limits(device: torch.device) -> Device:
    """Of a GPU; on the CPU, where the interpreter runs one program after the other, 8 multiprocessors of a Hopper."""
    if device.type == "cpu":
        return Device(8, 227 * 1024)
    properties = triton.runtime.driver.active.utils.get_device_properties(device.index)
    return Device(int(properties["multiprocessor_count"]), int(properties["max_shared_mem"]))
