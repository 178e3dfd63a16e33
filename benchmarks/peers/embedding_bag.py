# SPDX-License-Identifier: Apache-2.0
"""One embedding_bag of weighted sums: the best that plain PyTorch has."""

import torch
import torch.nn.functional as F
from torch import Tensor

from patchrec_fast import PackedBatch

from .csr import levels, token_weights

Prepared = tuple[Tensor, Tensor, Tensor]


def prepare(batch: PackedBatch, dtype: torch.dtype) -> Prepared:
    ids, token_offsets, item_offsets = levels(batch)
    return ids, token_offsets[item_offsets], token_weights(batch).to(dtype)


def compress(weight: Tensor, prepared: Prepared, sparse: bool = False) -> Tensor:
    ids, row_offsets, token_weight = prepared
    return F.embedding_bag(
        ids,
        weight,
        row_offsets,
        mode="sum",
        per_sample_weights=token_weight,
        include_last_offset=True,
        sparse=sparse,
    )
