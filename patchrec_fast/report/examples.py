# SPDX-License-Identifier: Apache-2.0
"""Some users' histories and what a model recommends after them, for a reader to judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..data import Dataset
from ..recommend import Recommender
from .page import Section, Table

_NEWEST = 8  # titles of a history that are shown
_SPLITS = ("test", "val")


class Example(NamedTuple):
    """One user; titles are followed by own ids."""

    user: str
    earlier: int  # items before those shown
    history: list[str]  # oldest first
    chosen: str  # what came next
    recommended: list[str]  # best first
    rank: int | None  # of what came next among them, from 1


def examples(rec: Recommender, dataset: Dataset, users: int = 10, k: int = 5) -> list[Example]:
    """The k best titles after the history of some users, up to their last target of the test split or validation.

    Args:
        rec: of the titles of `dataset`.
        users: how many, evenly spread over those with such a target.

    Raises:
        ValueError: no user has such a target.
    """
    last = np.max([dataset.splits[split][:, 1] for split in _SPLITS], axis=0).astype(np.int64)
    there = np.flatnonzero(last > 0)
    if not len(there):
        raise ValueError(f"data: no user has a target in {' or '.join(_SPLITS)}, expected one to show")
    chosen = there[np.arange(count := min(users, len(there))) * len(there) // count]
    sequences = [dataset.items[dataset.offsets[user] : dataset.offsets[user] + last[user] + 1] for user in chosen]
    found = rec.recommend([items[:-1] for items in sequences], k=k, method="exact").items
    return [_example(dataset, *of) for of in zip(chosen.tolist(), sequences, found, strict=True)]


def _example(dataset: Dataset, user: int, items: np.ndarray, found: np.ndarray) -> Example:
    def titled(number: int) -> str:
        return f"{dataset.titles[number]} ({dataset.item_ids.of(number)})"

    history, target = items[:-1].tolist(), int(items[-1])
    best = [item for item in found.tolist() if item >= 0]
    ranks = [rank for rank, item in enumerate(best, 1) if dataset.titles[item] == dataset.titles[target]]
    shown = history[-_NEWEST:]
    return Example(
        str(dataset.user_ids.of(user)),
        len(history) - len(shown),
        [titled(item) for item in shown],
        titled(target),
        [titled(item) for item in best],
        ranks[0] if ranks else None,
    )


def recommendations(found: Sequence[Example], model: str | None) -> Section:
    """A row a user."""
    title = "What is recommended"
    if model is None:
        return Section(title, missing="patchrec-fast report --model runs/pft-s --data DIR ...")
    rows = []
    for each in found:
        before = [f"({each.earlier:,} earlier)"] if each.earlier else []
        best = [f"{rank}. {name}" for rank, name in enumerate(each.recommended, 1)]
        if each.rank is not None:
            best[each.rank - 1] += ", which came next"
        rows.append([each.user, [*before, *each.history], each.chosen, best])
    hits = sum(each.rank is not None for each in found)
    text = (
        f"What came next is among those recommended to {hits} of {len(found)}: to read, too few to measure quality by."
    )
    caption = f"{model}: {len(found)} users, evenly spread; own ids in brackets"
    head = ("user", "history, newest last", "what came next", "recommended")
    return Section(title, [text], tables=[Table(caption, head, rows, prose=True)])
