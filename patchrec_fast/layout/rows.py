# SPDX-License-Identifier: Apache-2.0
"""What the rows of a prompt are made of: which of them two prompts begin with, and a batch without its first ones."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..ragged import counting, to_offsets
from .batch import PackedBatch


class PromptRows(NamedTuple):
    """The two-level CSR of one prompt of R rows, I items and T tokens."""

    ids: NDArray[np.int32]  # (T,)
    token_offsets: NDArray[np.int32]  # (I + 1,)
    item_offsets: NDArray[np.int32]  # (R + 1,)

    def common(self, other: PromptRows) -> int:
        """How many rows both begin with: of the same items, of the same tokens."""
        rows = _common(self.item_offsets, other.item_offsets) - 1
        items = _common(self.token_offsets, other.token_offsets) - 1
        tokens = _common(self.ids, other.ids)
        items = min(items, int(np.searchsorted(self.token_offsets, tokens, "right")) - 1)
        return min(rows, int(np.searchsorted(self.item_offsets, items, "right")) - 1)


def prompt_rows(batch: PackedBatch) -> list[PromptRows]:
    """Of each user of a batch of whole prompts, in host memory."""
    ids, token_offsets, item_offsets = (part.numpy() for part in (batch.ids, *batch.offsets))
    found = []
    for first, last in zip(batch.cu_seqlens[:-1].tolist(), batch.cu_seqlens[1:].tolist(), strict=True):
        items = item_offsets[first : last + 1]
        tokens = token_offsets[items[0] : items[-1] + 1]
        found.append(PromptRows(ids[tokens[0] : tokens[-1]].copy(), tokens - tokens[0], items - items[0]))
    return found


def without(batch: PackedBatch, rows: list[int]) -> PackedBatch:
    """The batch, in host memory, without each user's first rows; positions stay.

    Args:
        batch: whole prompts without targets or a plan.
        rows: (B,) of each user, fewer than they have.
    """
    if not any(rows):
        return batch
    ids, token_offsets, item_offsets = (part.numpy() for part in (batch.ids, *batch.offsets))
    ends = batch.cu_seqlens.numpy().astype(np.int64)
    first = ends[:-1] + np.asarray(rows, np.int64)  # (B,)
    left = counting(first, ends[1:] - first)  # (R,) the rows that stay
    token_at = token_offsets[item_offsets[np.stack([first, ends[1:]])]].astype(np.int64)  # (2, B)
    item_at = item_offsets[np.stack([first, ends[1:]])].astype(np.int64)
    items = counting(item_at[0], item_at[1] - item_at[0])
    cu_seqlens = to_offsets(ends[1:] - first)
    return replace(
        batch,
        ids=torch.from_numpy(ids[counting(token_at[0], token_at[1] - token_at[0])]),
        offsets=(
            torch.from_numpy(to_offsets(np.diff(token_offsets)[items]).astype(np.int32)),
            torch.from_numpy(to_offsets(np.diff(item_offsets)[left]).astype(np.int32)),
        ),
        cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
        max_seqlen=int(np.diff(cu_seqlens).max()),
        position_ids=batch.position_ids[torch.from_numpy(left)],
        absent=sum(rows),
    )


def _common(one: NDArray[np.int32], other: NDArray[np.int32]) -> int:
    """How many numbers both begin with."""
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length
