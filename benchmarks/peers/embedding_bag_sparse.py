# SPDX-License-Identifier: Apache-2.0
"""The same with a sparse gradient: T rows, not coalesced, so that its consumer sums the duplicates."""

from torch import Tensor

from . import embedding_bag

prepare = embedding_bag.prepare


def compress(weight: Tensor, prepared: embedding_bag.Prepared) -> Tensor:
    return embedding_bag.compress(weight, prepared, sparse=True)
