# SPDX-License-Identifier: Apache-2.0
"""Which backend serves an operator: C++ (`cpu`), Triton (`triton`) or plain PyTorch (`reference`).

`auto` takes the fastest that can serve the tensor; a backend asked for by name serves or raises, it is never replaced
by another.
"""

import os
from functools import cache
from importlib.util import find_spec
from typing import Literal, get_args

import torch

from . import native

Impl = Literal["auto", "cpu", "triton", "reference"]
IMPLS: tuple[str, ...] = get_args(Impl)

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(impl: str, device_type: str, dtype: torch.dtype = torch.float32) -> str | None:
    """None where `impl` can serve tensors of that device and dtype, else the reason in one line."""
    if impl == "reference":
        return None
    if dtype not in KERNEL_DTYPES:
        names = ", ".join(str(known).removeprefix("torch.") for known in KERNEL_DTYPES)
        return f"it takes {names} weights, got {dtype}; impl='reference' takes any floating dtype"
    if impl == "cpu":
        if device_type != "cpu":
            return f"it runs on CPU tensors, got a tensor on {device_type}"
        return native.why_not()
    if impl == "triton":
        return _why_not_triton(device_type)
    raise ValueError(f"impl must be one of {', '.join(map(repr, IMPLS))}, got {impl!r}")


def _why_not_triton(device_type: str) -> str | None:
    if find_spec("triton") is None:
        return "Triton is not installed; pip install triton"
    if device_type == "cpu":
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        return None if interpreted else "it runs on GPU tensors (on CPU only under TRITON_INTERPRET=1)"
    if device_type not in ("cuda", "xpu"):  # torch calls ROCm devices "cuda" too
        return f"it runs on cuda and xpu tensors, got a tensor on {device_type}"
    device = getattr(torch, device_type)
    return None if device.is_available() else f"torch sees no {device_type} device"


@cache
def choose(impl: str, device_type: str, dtype: torch.dtype) -> str:
    """The name of the backend that serves; raises RuntimeError where a named one cannot."""
    if impl == "auto":
        preferred = "cpu" if device_type == "cpu" else "triton"
        return preferred if why_not(preferred, device_type, dtype) is None else "reference"
    reason = why_not(impl, device_type, dtype)
    if reason is not None:
        raise RuntimeError(f"impl={impl!r} cannot serve this call: {reason}")
    return impl
