# SPDX-License-Identifier: Apache-2.0
"""A collator for rows of the caller's own dataset, for those who keep their trainer's sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..layout import Packer


class Collator:
    """Rows -> one packed batch, for `Trainer`, `SFTTrainer` or a plain `DataLoader`. Picklable.

    Set `remove_unused_columns=False`, and for `SFTTrainer` also `dataset_kwargs={"skip_prepare_dataset": True}` and
    `max_length=None`.

    Attributes:
        packer, history, target: as given.
    """

    def __init__(self, packer: Packer, history: str = "history", target: str = "target") -> None:
        """Set up.

        Args:
            packer: how rows become prompts. A random policy draws from torch's generator.
            history: the column of item ids, oldest first.
            target: the column of the item id to be learnt; rows without it make a batch without labels.
        """
        self.packer = packer
        self.history = history
        self.target = target

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The model's keyword arguments, `PackedBatch.model_inputs`.

        Raises:
            ValueError: rows without a history, or only some with a target.
        """
        learnt = sum(self.target in row for row in rows)
        if not all(self.history in row for row in rows) or learnt not in (0, len(rows)):
            raise ValueError(
                f"rows: expected the column {self.history!r} in each, and {self.target!r} in all or in none, got "
                f"{sorted({name for row in rows for name in row})}; a trainer drops columns it does not know unless "
                "remove_unused_columns=False"
            )
        targets = [row[self.target] for row in rows] if learnt else None
        seed = int(torch.randint(2**62, ()))
        return self.packer.pack([row[self.history] for row in rows], targets, seed).model_inputs()
