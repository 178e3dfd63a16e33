# SPDX-License-Identifier: Apache-2.0
"""What runs on the pretended device that torch does not dispatch: Triton's programs, by its interpreter; and compiled
functions, as they are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from . import attention
from .device import MULTIPROCESSORS, SHARED_BYTES, host, launch

_PROPERTIES = {"multiprocessor_count": MULTIPROCESSORS, "max_shared_mem": SHARED_BYTES}


def install() -> None:
    """For the rest of the process, after `device.install`. Needs TRITON_INTERPRET=1."""
    _triton()
    attention.install()
    torch.compile = _compile


def _compile(model: Any = None, **options: Any) -> Any:
    """There is no compiler for the device. FlexAttention, uncompiled, is another program than its kernel."""
    from torch.nn.attention.flex_attention import flex_attention

    if model is None:
        return _compile
    return attention.flex_attention if model is flex_attention else model


def _triton() -> None:
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.interpreter import GridExecutor

    run = GridExecutor.__call__

    def call(executor: Any, *args: Any, **options: Any) -> None:
        name, grid = executor.fn.__name__, executor.grid
        tensors = [each for each in (*args, *options.values()) if isinstance(each, Tensor)]
        if any(each.device.type != "cuda" for each in tensors):
            raise ValueError(f"{name}: Pointer argument cannot be accessed from Triton (cpu tensor?)")
        if not 0 < grid[0] < 2**31 or not all(0 < size < 2**16 for size in grid[1:]):
            raise RuntimeError(f"Triton Error [CUDA]: invalid argument: {name} on grid {grid}")
        positional, named = [host(each) for each in args], {key: host(each) for key, each in options.items()}
        launch(name, lambda: run(executor, *positional, **named), tensors)

    GridExecutor.__call__ = call
    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", 90, 32),
            get_current_device=lambda: 0,
            utils=SimpleNamespace(get_device_properties=lambda index: dict(_PROPERTIES)),
        )
    )
