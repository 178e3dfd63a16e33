# SPDX-License-Identifier: Apache-2.0
"""Many small tensors brought to a device in one copy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_ALIGN = 16  # bytes, which is the widest load of a kernel


def together(tensors: Sequence[Tensor], device: torch.device | str, non_blocking: bool = False) -> list[Tensor]:
    """The tensors on `device`.

    From host memory to a GPU they go as views of one buffer, in one copy from page-locked memory, for which the host
    does not wait: as copies of their own they would each cost a launch and, from pageable memory, a wait. The buffer
    lives as long as any of them.

    Args:
        non_blocking: as `Tensor.to` takes it, where they are copied one by one.
    """
    device = torch.device(device)
    if device.type not in ("cuda", "xpu") or any(x.device.type != "cpu" for x in tensors):
        return [x.to(device, non_blocking=non_blocking) for x in tensors]
    starts = [0]
    for x in tensors:
        starts.append(-(-(starts[-1] + x.nbytes) // _ALIGN) * _ALIGN)
    host = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=True)
    for part, x in zip(_parts(host, starts, tensors), tensors, strict=True):
        part.copy_(x)
    return _parts(host.to(device, non_blocking=True), starts, tensors)


def _parts(buffer: Tensor, starts: Sequence[int], tensors: Sequence[Tensor]) -> list[Tensor]:
    return [
        buffer[start : start + x.nbytes].view(x.dtype).view(x.shape)
        for start, x in zip(starts[:-1], tensors, strict=True)
    ]
