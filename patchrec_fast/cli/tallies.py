# SPDX-License-Identifier: Apache-2.0
"""What `data prepare` dropped, merged or changed, in a sentence each, with an example."""

from collections.abc import Iterator
from typing import Any

from ..data.faults import shown
from ..data.tally import Tally

_CHANGED = {
    "HTML entities": "with HTML entities, which are characters now",
    "control characters and spaces": "with control characters, line ends or repeated spaces, which are gone",
    "parentheses": "with parentheses, which are dropped (--keep-year keeps the year, --parentheses keep all)",
    "articles": "with an article at the end, which is at the front now (--articles keep leaves it)",
}


def sentences(tallies: dict[str, Tally], read: int) -> Iterator[str]:
    """The sentences, for `Prepared.tallies` and the number of rows that were read."""
    for name, tally in tallies.items():
        count, examples = tally.count, tally.examples
        first: Any = examples[0] if examples else None
        if name == "rated too low":
            yield f"rated too low: {count:,} of {read:,} rows, left out"
        elif name == "repeats":
            yield (
                f"an item again of the same user: {count:,} of {read:,} rows, left out, the earliest stays: user "
                f"{first['user']!r} has item {first['item']!r} {first['times']:,} times (--keep-repeats keeps them)"
            )
        elif name == "untitled items":
            yield f"{_many(count, 'item')} without a title, left out: {_list(examples, count)}"
        elif name == "items with several titles":
            yield (
                f"{_many(count, 'item')} with several titles, the first stays: item {first['item']!r} is called "
                f"{shown(first['kept'])}, not {shown(first['other'])}"
            )
        elif name == "shared titles":
            groups = "; ".join(
                f"{shown(group['title'])} is {_list(group['items'], group['count'])}" for group in examples
            )
            yield f"{count:,} items share their title with another, a model cannot tell them apart: {groups}"
        else:
            yield f"{_many(count, 'title')} {_CHANGED[name]}: {shown(first['before'])} is {shown(first['after'])}"


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _list(names: list[Any], count: int) -> str:
    more = count - len(names)
    return ", ".join(map(repr, names)) + (f" and {more:,} more" if more else "")
