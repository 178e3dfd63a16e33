# SPDX-License-Identifier: Apache-2.0
"""What a packer makes and a model reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..ops.plan import Plan


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """Prompts of B users, one after another, without padding.

    T tokens form I items (means over tokens), and the items form R rows (means over items). A row
    is one input embedding of the language model; a row of plain text is one item of one token.

    Attributes:
        ids: (T,) int32 token ids.
        offsets: token_offsets (I + 1,) int32 and item_offsets (R + 1,) int32, as `compress` takes
            them.
        cu_seqlens: (B + 1,) int32, the rows of user b are `cu_seqlens[b]:cu_seqlens[b + 1]`.
        max_seqlen: the most rows of a user.
        position_ids: (R,) int64, rows counted from 0 for each user.
        labels: (R,) int64, the row's own token where it is supervised and -100 elsewhere (not
            shifted: the loss shifts); None without targets.
        plan: what `Packer(..., plan=True)` prepared for the compress op, else None.
    """

    ids: Tensor
    offsets: tuple[Tensor, Tensor]
    cu_seqlens: Tensor
    max_seqlen: int
    position_ids: Tensor
    labels: Tensor | None = None
    plan: Plan | None = None

    def __len__(self) -> int:
        """The number of users."""
        return len(self.cu_seqlens) - 1

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedBatch:
        """A copy on `device`; the host does not wait with `non_blocking` from pinned memory."""
        return self._map(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PackedBatch:
        """A copy in page-locked memory, as `DataLoader(pin_memory=True)` makes it.

        Raises:
            RuntimeError: torch finds no accelerator.
        """
        return self._map(lambda part: part.pin_memory())

    def _map(self, move: Callable[[Any], Any]) -> PackedBatch:
        return replace(
            self,
            ids=move(self.ids),
            offsets=(move(self.offsets[0]), move(self.offsets[1])),
            cu_seqlens=move(self.cu_seqlens),
            position_ids=move(self.position_ids),
            labels=None if self.labels is None else move(self.labels),
            plan=None if self.plan is None else move(self.plan),
        )
