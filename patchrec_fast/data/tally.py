# SPDX-License-Identifier: Apache-2.0
"""What `prepare` dropped, merged or changed: how many of each, and a few to look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .ids import Ids, Key
from .interactions import Items

SHOWN = 3  # examples


@dataclass(frozen=True)
class Tally:
    """How many, and the first few or the largest.

    Of `Prepared.tallies`, by name:

    - "rated too low": interactions; no examples.
    - "repeats": interactions that were dropped; {"user", "item", "times"}, the pairs that came most often.
    - "untitled items": items that were dropped for it; their ids.
    - "items with several titles": {"item", "kept", "other"}.
    - "shared titles": items that have another's title; {"title", "count", "items"}, the titles that most have.
    - "HTML entities", "control characters and spaces", "parentheses", "articles": titles; {"before", "after"}.
    """

    count: int
    examples: list[Any]


def repeats(
    users: NDArray[np.int32], items: NDArray[np.int32], dropped: NDArray[np.bool_], names: list[Key], source: Items
) -> Tally:
    """Counts interactions of a user with an item again.

    Args:
        users, items: (N,) numbers.
        dropped: (N,) all of a pair but the one that stays.
        names: by number of the user.
        source: names of the items.
    """
    pairs = users[dropped].astype(np.int64) << 32 | items[dropped]
    pairs, counts = np.unique(pairs, return_counts=True)
    most = np.argsort(-counts, kind="stable")[:SHOWN]
    examples = [
        {"user": names[pair >> 32], "item": source.own(pair & 0xFFFFFFFF), "times": count + 1}
        for pair, count in zip(pairs[most].tolist(), counts[most].tolist(), strict=True)
    ]
    return Tally(int(dropped.sum()), examples)


def shared(titles: dict[int, str], own: Ids) -> Tally:
    """Counts items whose title another has too.

    Args:
        titles: by item id.
        own: of these items.
    """
    groups: dict[str, list[Key]] = {}
    for item, title in titles.items():
        groups.setdefault(title, []).append(own.of(item))
    several = sorted(
        ((title, items) for title, items in groups.items() if len(items) > 1), key=lambda group: -len(group[1])
    )
    examples = [{"title": title, "count": len(items), "items": items[:SHOWN]} for title, items in several[:SHOWN]]
    return Tally(sum(len(items) for _, items in several), examples)
