# SPDX-License-Identifier: Apache-2.0
"""The loss on the supervised rows: the language-model head sees no other row.

transformers' own forward does it, told by `logits_to_keep` (a 1-D index, which Liger's forward takes too) and
`shift_labels`. Its loss is a cross-entropy of float32 logits, a mean over the supervised rows, or their sum over
`num_items_in_batch` where the trainer gives that. Above a size no logits are made (`head`).
"""

from typing import Any

from torch import Tensor

from ..layout.batch import supervised_rows

_LOSS_HAS_AN_OWNER = ("fused_lm_head", "shift_labels", "logits_to_keep")  # TRL; a caller who does it by hand


def on_supervised_rows(kwargs: dict[str, Any]) -> dict[str, Any]:
    """What to add to a packed call so that only supervised rows reach the head.

    Args:
        kwargs: the call's: `labels` (1, R) int64, not shifted, -100 where unsupervised; and `supervised_rows`
            (N,) int64, the rows whose successor is supervised, which `PackedBatch.model_inputs` finds on the host
            (finding them here waits for a GPU).

    Returns:
        `logits_to_keep` (N,) and `shift_labels` (1, N); nothing where there are no labels or where the caller owns
        the loss (TRL's `fused_lm_head`, or `shift_labels` or `logits_to_keep` given).
    """
    labels: Tensor | None = kwargs.get("labels")
    if labels is None or any(name in kwargs for name in _LOSS_HAS_AN_OWNER):
        return {}
    rows = kwargs.get("supervised_rows")
    if rows is None:
        rows = supervised_rows(labels[0])
    return {"logits_to_keep": rows, "shift_labels": labels[:, rows + 1]}
