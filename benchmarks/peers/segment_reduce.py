# SPDX-License-Identifier: Apache-2.0
"""Embed every token, then torch.segment_reduce twice."""

import torch
import torch.nn.functional as F
from torch import Tensor

from patchrec_fast import PackedBatch

from .csr import levels

Prepared = tuple[Tensor, Tensor, Tensor]


def prepare(batch: PackedBatch, dtype: torch.dtype) -> Prepared:
    return levels(batch)


def compress(weight: Tensor, prepared: Prepared) -> Tensor:
    ids, token_offsets, item_offsets = prepared
    tokens = F.embedding(ids, weight)  # (T, d)
    patches = torch.segment_reduce(tokens, "mean", offsets=token_offsets, unsafe=True)  # (I, d)
    return torch.segment_reduce(patches, "mean", offsets=item_offsets, unsafe=True)  # (R, d)
