# SPDX-License-Identifier: Apache-2.0
"""What else trains on the same prompts: forward and backward of one step, loss included.

A trainer makes the rows of a batch by one of the peers of compress, lays them out, and lets stock
transformers (sdpa) do the rest: every row's logits, and its own loss. Ours is the attached model, on a batch of the
same users that shares the rows before the history.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from patchrec_fast import PackedBatch

from . import OURS, index_add, per_item_loop

Loss = Callable[[Any, PackedBatch, Any], Tensor]


class Trainer(NamedTuple):
    """Ours or a peer; `loss(model, batch, prepared)` is timed with its backward."""

    name: str
    attached: bool
    prepare: Callable[[PackedBatch, torch.dtype], Any]
    loss: Loss


def _inputs(batch: PackedBatch, dtype: torch.dtype) -> dict[str, Any]:
    """Made in host memory and moved, as by a collator and a trainer."""

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(each) for each in value]
        return value.to(batch.ids.device) if isinstance(value, Tensor) else value

    return {name: moved(value) for name, value in batch.to("cpu").model_inputs().items()}


def _ours(model: Any, batch: PackedBatch, prepared: dict[str, Any]) -> Tensor:
    return model(**prepared).loss


def _padded(pooling: Any) -> Loss:
    """Users side by side, padded on the right to the longest."""

    def loss(model: Any, batch: PackedBatch, prepared: Any) -> Tensor:
        rows = pooling.compress(model.get_input_embeddings().weight, prepared)  # (R, d)
        lengths = batch.cu_seqlens.diff().tolist()
        padded = pad_sequence(list(rows.split(lengths)), batch_first=True)  # (B, L, d)
        assert batch.labels is not None
        labels = pad_sequence(list(batch.labels.split(lengths)), batch_first=True, padding_value=-100)
        mask = pad_sequence([torch.ones(n, dtype=torch.long, device=rows.device) for n in lengths], batch_first=True)
        return model(inputs_embeds=padded, attention_mask=mask, labels=labels, use_cache=False).loss

    return loss


def _packed(model: Any, batch: PackedBatch, prepared: Any) -> Tensor:
    """One long row; transformers sees the users by their positions and masks between them."""
    rows = index_add.compress(model.get_input_embeddings().weight, prepared)
    inputs = batch.model_inputs()
    return model(
        inputs_embeds=rows.unsqueeze(0),
        position_ids=inputs["position_ids"],
        labels=inputs["labels"],
        use_cache=False,
    ).loss


LOOP = "per-item loop"
TRAINERS = (
    Trainer(OURS, True, _inputs, _ours),
    Trainer(LOOP, False, per_item_loop.prepare, _padded(per_item_loop)),
    Trainer("padded sdpa", False, index_add.prepare, _padded(index_add)),
    Trainer("packed sdpa", False, index_add.prepare, _packed),
)
