# SPDX-License-Identifier: Apache-2.0
"""Keys and values of a packed call in which the users share the rows before the history.

Every prompt of a batch begins with the same template. Attention is causal, so these rows come out the same for all
users: a batch packed with `share_prefix` has them once, with the first user, and the other users' rows see their keys
and values in front of their own. What the rows are worth to each user meets in their gradient. (The same is done for
decoding in `patchrec_fast.hf.cache`; Hydragen, arXiv 2402.05099.)
"""

from typing import Any

import torch
from torch import Tensor


def seen(x: Tensor, rows: Tensor, own: Tensor, shared: Tensor) -> Tensor:
    """Keys or values as each user sees them, the users one after another.

    Args:
        x: (R, H, D), a row each; the first P are the shared ones.
        rows: (S,) int64, which of them each key is.
        own: (R,) int64, the key that each row is to its own user.
        shared: (N, P) int64, the keys that the shared rows are to the N other users. `own` and `shared` are all of S,
            each once (`PackedBatch.model_inputs` makes the three).

    Returns:
        (S, H, D).
    """
    return _Seen.apply(x, rows, own, shared)


class _Seen(torch.autograd.Function):
    """`x[rows]`, whose own gradient would be added up row after row, on a GPU in no fixed order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, own: Tensor, shared: Tensor) -> Tensor:
        ctx.save_for_backward(own, shared)
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        own, shared = ctx.saved_tensors
        dx = grad.index_select(0, own)  # (R, H, D)
        dx[: shared.shape[1]] += grad[shared].sum(0)
        return dx, None, None, None
