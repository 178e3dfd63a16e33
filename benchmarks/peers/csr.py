# SPDX-License-Identifier: Apache-2.0
"""What peers prepare from a batch's two offsets."""

import torch
from torch import Tensor

from patchrec_fast import PackedBatch


def levels(batch: PackedBatch) -> tuple[Tensor, Tensor, Tensor]:
    """ids (T,), token_offsets (I+1,) and item_offsets (R+1,), all int64."""
    return batch.ids.long(), batch.offsets[0].long(), batch.offsets[1].long()


def owners(offsets: Tensor) -> Tensor:
    """(N,) int64: the segment that each element is in."""
    segments = torch.arange(len(offsets) - 1, device=offsets.device)
    return segments.repeat_interleave(offsets.diff())


def token_weights(batch: PackedBatch) -> Tensor:
    """(T,) float64: 1 / (items of the token's row * tokens of its item)."""
    _, token_offsets, item_offsets = levels(batch)
    share = 1 / token_offsets.diff().double()  # (I,)
    share /= item_offsets.diff()[owners(item_offsets)]
    return share[owners(token_offsets)]
