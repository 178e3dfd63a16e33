# SPDX-License-Identifier: Apache-2.0
"""The answers for every user of a data set, as one CSV file in the data's own ids."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import _files

if TYPE_CHECKING:
    from ..data import Dataset
    from ..recommend import Recommender

HEADER = ("user", "place", "item", "title", "probability")
_BATCH = 16  # users at once


def write_answers(path: Path, rec: Recommender, dataset: Dataset, k: int, options: dict[str, Any]) -> int:
    """Writes a row for each user and place, users in the order of the data; the file appears whole or not at all.

    Args:
        path: of the file.
        rec: answers with the data's titles.
        dataset: whose users are asked for, with all of their history.
        k: titles a user.
        options: of `Recommender.recommend`.

    Returns:
        How many rows.

    Raises:
        OSError: the file cannot be written; one that was there is there still.
        ValueError: as `Recommender.recommend`.
    """
    import numpy as np
    from tqdm import tqdm

    written = 0
    with _files.replacing(path) as made, made.open("w", encoding="utf-8", newline="") as file, rec.engine():
        rows = csv.writer(file)
        rows.writerow(HEADER)
        with tqdm(total=len(dataset), unit=" users", disable=None) as bar:
            for first in range(0, len(dataset), _BATCH):
                ends = dataset.offsets[first : first + _BATCH + 1]
                histories = dataset.items[ends[0] : ends[-1]], ends - ends[0]
                found = rec.recommend(histories, k, **options)
                for user, (items, chances) in enumerate(zip(found.items, np.exp(found.log_probs), strict=True), first):
                    own = dataset.user_ids.of(user)
                    for place, (item, chance) in enumerate(zip(items.tolist(), chances.tolist(), strict=True), 1):
                        if item >= 0:
                            title = dataset.titles[item]
                            rows.writerow([own, place, dataset.item_ids.of(item), title, f"{chance:.6g}"])
                            written += 1
                bar.update(len(ends) - 1)
    return written
