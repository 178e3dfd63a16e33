# SPDX-License-Identifier: Apache-2.0
"""Means of titles, then means of items: the definition as two embedding_bags."""

import torch
import torch.nn.functional as F
from torch import Tensor

from patchrec_fast import PackedBatch

from .csr import levels

Prepared = tuple[Tensor, Tensor, Tensor, Tensor]


def prepare(batch: PackedBatch, dtype: torch.dtype) -> Prepared:
    ids, token_offsets, item_offsets = levels(batch)
    items = torch.arange(len(token_offsets) - 1, device=ids.device)
    return ids, token_offsets, items, item_offsets


def compress(weight: Tensor, prepared: Prepared) -> Tensor:
    ids, token_offsets, items, item_offsets = prepared
    patches = _means(ids, weight, token_offsets)  # (I, d)
    return _means(items, patches, item_offsets)  # (R, d)


def _means(ids: Tensor, table: Tensor, offsets: Tensor) -> Tensor:
    return F.embedding_bag(ids, table, offsets, mode="mean", include_last_offset=True)
