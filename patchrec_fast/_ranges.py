# SPDX-License-Identifier: Apache-2.0
"""Named parts of the work, for Nsight Systems."""

from contextlib import AbstractContextManager, nullcontext

import torch


def named(part: str, device: torch.device) -> AbstractContextManager[object]:
    """An NVTX range on CUDA, else nothing; nothing in compiled code either, which has no place for one."""
    if device.type != "cuda" or torch.compiler.is_compiling():
        return nullcontext()
    return torch.cuda.nvtx.range(f"patchrec_fast {part}")
