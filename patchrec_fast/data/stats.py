# SPDX-License-Identifier: Apache-2.0
"""The figures of a dataset: the paper's Table 1, the sizes of the splits, and tokens of a title."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .dataset import EARLIEST, Dataset

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def statistics(dataset: Dataset, tokenizer: PreTrainedTokenizerBase | None = None) -> dict[str, Any]:
    """Users, items and interactions, lengths of the users' sequences, samples of each split, tokens of a title.

    Args:
        dataset: any.
        tokenizer: a Hugging Face tokenizer; None leaves tokens out.

    Returns:
        In the order of a report: users; items (with a title), items_used (by anybody); interactions; longest and
        mean_length of the sequences; shared_titles (items whose title another item has too); for each of train, val
        and test a dictionary of its samples (targets at position 3 or later), of their users, and of the items before
        the target, mean_history and longest_history; with a tokenizer tokens_per_title, the mean over the catalogue
        (the paper's "tokens per title"), and tokens_per_interaction, where an item counts as often as it is used.
    """
    lengths = np.diff(dataset.offsets)
    used, uses = np.unique(dataset.items, return_counts=True)
    _, same = np.unique(list(dataset.titles.values()), return_counts=True)
    figures: dict[str, Any] = {
        "users": len(dataset),
        "items": len(dataset.titles),
        "items_used": len(used),
        "interactions": len(dataset.items),
        "longest": int(lengths.max()),
        "mean_length": float(lengths.mean()),
        "shared_titles": int(same[same > 1].sum()),
    }
    for split in dataset.splits:
        figures[split] = _of_split(dataset.splits[split])
    if tokenizer is not None:
        encoded = tokenizer(list(dataset.titles.values()), add_special_tokens=False, split_special_tokens=True)
        tokens = dict(zip(dataset.titles, map(len, encoded["input_ids"]), strict=True))
        figures["tokens_per_title"] = float(np.mean(list(tokens.values())))
        figures["tokens_per_interaction"] = float(np.average([tokens[item] for item in used.tolist()], weights=uses))
    return figures


def _of_split(positions: NDArray[np.int32]) -> dict[str, float]:
    """Of the first and the last position of each user's targets, (U, 2)."""
    last = positions[:, 1].astype(np.int64)
    first = np.maximum(positions[:, 0], EARLIEST)
    counts = np.maximum(last + 1 - first, 0)
    samples = int(counts.sum())
    items = int(((first + last) * counts).sum()) // 2  # the sum of first to last, for each user
    return {
        "samples": samples,
        "users": int(np.count_nonzero(counts)),
        "mean_history": items / samples if samples else 0.0,
        "longest_history": int(last[counts > 0].max(initial=0)),
    }
