# SPDX-License-Identifier: Apache-2.0
"""A product of a sparse matrix in CSR with the table: cuSPARSE on a GPU, MKL on a CPU (not in bfloat16)."""

import torch
from torch import Tensor

from patchrec_fast import PackedBatch

from .csr import levels, token_weights

Prepared = tuple[Tensor, Tensor, Tensor]


def prepare(batch: PackedBatch, dtype: torch.dtype) -> Prepared:
    """A row's tokens are its columns; an id that a row has twice stands there twice."""
    ids, token_offsets, item_offsets = levels(batch)
    return token_offsets[item_offsets], ids, token_weights(batch).to(dtype)


def compress(weight: Tensor, prepared: Prepared) -> Tensor:
    row_offsets, ids, token_weight = prepared
    size = len(row_offsets) - 1, weight.shape[0]
    pooling = torch.sparse_csr_tensor(row_offsets, ids, token_weight, size, check_invariants=False)
    return torch.sparse.mm(pooling, weight)
