# SPDX-License-Identifier: Apache-2.0
"""`python -m patchrec_fast.info`: versions, and which backend serves which operator on which device, and why."""

import importlib.metadata
import platform
from collections.abc import Callable
from typing import Any

import torch

from ._version import __version__
from .ops import backends, native
from .ops.attention import tree

OPERATORS: dict[str, Callable[[Any, str, torch.dtype], str]] = {
    "compress": backends.choose,
    "tree_attention": tree.choose,
}
PACKAGES = ("torch", "triton", "transformers", "flash-attn", "numpy", "pyarrow", "pytest-benchmark")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def versions() -> dict[str, str]:
    """Version of this package, Python and the packages it knows how to use ("not installed" where absent)."""
    found = {"patchrec_fast": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def devices() -> list[str]:
    """Device types torch can use here."""
    accelerators = [kind for kind in ("cuda", "xpu") if getattr(torch, kind).is_available()]
    return ["cpu", *accelerators]


def serving(device: str) -> list[str]:
    """A line an operator: the backend of each dtype on that device, and why the others do not serve."""
    lines = []
    for operator, choose in OPERATORS.items():
        chosen = {dtype: _said(choose, "auto", device, dtype, instead="none") for dtype in _DTYPES}
        served = ", ".join(f"{str(dtype).removeprefix('torch.')}: {impl}" for dtype, impl in chosen.items())
        lines.append(f"{operator} on {device}: {served}")
    for impl in ("cpu", "triton"):
        reason = _said(backends.why_not, impl, device)
        if reason is not None:
            lines.append(f"  not {impl}: {reason}")
    return lines


def _said(answer: Callable[..., str | None], *about: Any, instead: str | None = None) -> str | None:
    """The answer; where PATCHREC_FAST_NATIVE or PATCHREC_FAST_ISA names what does not serve, `instead` or the error."""
    try:
        return answer(*about)
    except (RuntimeError, ValueError) as error:
        return instead or str(error)


def attention(device: str) -> list[str]:
    """Which kernel runs packed attention on that device, and why the others do not."""
    from .hf import attention as kernels

    dtypes = (torch.bfloat16, torch.float32)
    served = ", ".join(
        f"{str(dtype).removeprefix('torch.')}: {kernels.choose('auto', device, dtype)}" for dtype in dtypes
    )
    lines = [f"packed attention on {device}: {served}"]
    for kernel in kernels.KERNELS:
        reason = kernels.why_not(kernel, device, torch.bfloat16)
        if reason is not None:
            lines.append(f"  not {kernel}: {reason}")
    return lines


def report() -> str:
    """The whole text."""
    lines = [f"{name:16} {version}" for name, version in versions().items()]
    lines += [f"{'machine':16} {platform.machine()}, {torch.get_num_threads()} threads"]
    lines += [f"{'native kernels':16} {_said(native.why_not) or _said(native.isa)}"]
    lines += [f"{kind:16} {getattr(torch, kind).get_device_name()}" for kind in devices()[1:]]
    lines.append("")
    for device in devices():
        lines += serving(device) + attention(device)
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())
