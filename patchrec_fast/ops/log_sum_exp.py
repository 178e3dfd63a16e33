# SPDX-License-Identifier: Apache-2.0
"""The log-sum-exp of a head's logits, as they come out of the product: in half precision, not yet scaled or capped."""

from __future__ import annotations

import torch
from torch import Tensor

from . import backends
from .backends import Impl


def log_sum_exp(logits: Tensor, *, scale: float = 1.0, softcap: float | None = None, impl: Impl = "auto") -> Tensor:
    """log of the sum of exp over each row of scaled, then capped logits.

    Args:
        logits: (N, V) floating, of any strides.
        scale: positive; of the logits.
        softcap: logits become `softcap * tanh(scale * logits / softcap)`. None is no cap.
        impl: "triton" reads the logits once; "reference" is PyTorch, with float32 copies of them. "auto" is the first
            that serves.

    Returns:
        (N,) float32 (float64 of float64), with `torch.logsumexp`'s answers for infinite and NaN logits. No gradient.

    Raises:
        RuntimeError: `impl` cannot serve.
    """
    device, dtype = logits.device.type, logits.dtype
    if impl == "auto":
        impl = "reference" if backends.why_not("triton", device, dtype) or device == "cpu" else "triton"
    if backends.choose(impl, device, dtype) == "triton":
        from patchrec_kernels import log_sum_exp as kernels  # imports Triton

        made: Tensor = kernels.log_sum_exp(logits, scale, softcap)
        return made
    return finished(logits, scale, softcap).logsumexp(1)


def finished(logits: Tensor, scale: float = 1.0, softcap: float | None = None) -> Tensor:
    """Logits as a loss or a search takes them: float32 (float64 of float64), scaled, then capped."""
    logits = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    if scale != 1:
        logits = logits * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)
