# SPDX-License-Identifier: Apache-2.0
"""Embed every token, scale it, add it to its row."""

import torch
import torch.nn.functional as F
from torch import Tensor

from patchrec_fast import PackedBatch

from .csr import levels, owners, token_weights

Prepared = tuple[Tensor, Tensor, Tensor, int]


def prepare(batch: PackedBatch, dtype: torch.dtype) -> Prepared:
    ids, token_offsets, item_offsets = levels(batch)
    row = owners(token_offsets[item_offsets])  # (T,)
    return ids, row, token_weights(batch).to(dtype).unsqueeze(1), len(item_offsets) - 1


def compress(weight: Tensor, prepared: Prepared) -> Tensor:
    ids, row, token_weight, rows = prepared
    tokens = F.embedding(ids, weight) * token_weight  # (T, d)
    return tokens.new_zeros(rows, weight.shape[1]).index_add(0, row, tokens)
