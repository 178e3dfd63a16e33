# SPDX-License-Identifier: Apache-2.0
"""What else computes compress in plain PyTorch.

A peer is a module with two functions. `prepare(batch, dtype)` makes what depends on the batch alone
and is never timed, which is the kindest to the peer: indices are int64, because embedding_bag was
measured up to twice as slow with int32. `compress(weight, prepared)` is timed, and autograd is its
backward.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from patchrec_fast import PackedBatch, compress
from patchrec_fast.ops.compress.api import GradMode

from . import (
    embedding_bag,
    embedding_bag_sparse,
    embedding_bag_twice,
    index_add,
    per_item_loop,
    segment_reduce,
    sparse_mm,
)

MODES = ("forward", "dense", "dense+sgd", "sparse", "accumulate")
OURS = "patchrec_fast"

PEERS = {
    "embedding_bag": embedding_bag,
    "embedding_bag sparse": embedding_bag_sparse,
    "embedding_bag twice": embedding_bag_twice,
    "index_add": index_add,
    "segment_reduce": segment_reduce,
    "per-item loop": per_item_loop,
}
GPU_PEERS = {"sparse.mm": sparse_mm}
"""Beside these on a GPU; MKL takes no bfloat16."""
_SPARSE = ("embedding_bag sparse",)
_LOOP = ("per-item loop",)
_DENSE = tuple(name for name in PEERS if name not in _SPARSE + _LOOP)


class Contestant(NamedTuple):
    """Ours or a peer, ready to be timed in one mode."""

    name: str
    prepare: Callable[[PackedBatch, torch.dtype], Any]
    compress: Callable[[Tensor, Any], Tensor]


def peer(name: str) -> Contestant:
    """The peer of that name."""
    found = (PEERS | GPU_PEERS)[name]
    return Contestant(name, found.prepare, found.compress)


def ours(mode: str) -> Contestant:
    """patchrec_fast with the gradient mode that the benchmark mode asks for."""
    grad_modes: dict[str, GradMode] = {"sparse": "sparse", "accumulate": "accumulate"}
    grad_mode = grad_modes.get(mode, "dense")

    def call(weight: Tensor, batch: PackedBatch) -> Tensor:
        return compress(batch.ids, batch.offsets, weight, grad_mode=grad_mode, plan=batch.plan)

    return Contestant(OURS, lambda batch, dtype: batch, call)


def contestants(mode: str, *, loop: bool = False, gpu: bool = False) -> list[Contestant]:
    """Ours first, then every peer that has the mode; the loop's backward, and GPU_PEERS, only where asked for."""
    names = {"sparse": _SPARSE, "accumulate": _DENSE + _SPARSE}.get(mode, _DENSE)
    if mode == "forward" or loop:
        names += _LOOP
    if gpu and mode != "sparse":
        names += tuple(GPU_PEERS)
    return [ours(mode), *(peer(name) for name in names)]
