# SPDX-License-Identifier: Apache-2.0
"""Titles as somebody types them -> items: as they are written, or nearly, or a part that one title alone has."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

_SHOWN = 8  # titles that an error names


class Found(NamedTuple):
    """What was typed, and the item whose title it is."""

    text: str
    item: int
    title: str


def find_titles(wanted: Iterable[str], titles: Mapping[int, str]) -> list[Found]:
    """The first item of the title that each text means.

    It is the title that is written so; or so but for its case; or but for a year and an article at the end, on either
    side ("Toy Story (1995)" is "Toy Story", "Matrix, The" is "The Matrix"); or the only one that holds the text.

    Raises:
        ValueError: a text that several titles fit, or none; the message names those, or the nearest.
    """
    items: dict[str, int] = {}
    for item, title in titles.items():
        items.setdefault(title, item)
    exact, folded, cleaned = (_by(key, items) for key in (str, str.casefold, _bare))
    found = []
    for text in wanted:
        alike = exact.get(text) or folded.get(text.casefold()) or _same_year(text, cleaned.get(_bare(text), []))
        if not alike and (bare := _bare(text)):
            alike = _same_year(text, [title for title in items if bare in title.casefold()])
        if len(alike) != 1:
            raise ValueError(f"--history: {_which(text, alike) if alike else _nearest(text, folded)}")
        found.append(Found(text, items[alike[0]], alike[0]))
    return found


def _by(key: Callable[[str], str], titles: Iterable[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for title in titles:
        groups.setdefault(key(title), []).append(title)
    return groups


def _bare(title: str) -> str:
    """Without case, year and the like, its article in front."""
    from ..data.titles import clean_title  # not before a title is asked for: `--help` needs no NumPy

    return clean_title(title).casefold()


def _same_year(text: str, titles: list[str]) -> list[str]:
    """Of titles that are the text but for what is in parentheses, those that do not say something else there."""
    return [title for title in titles if "(" not in text[1:] or "(" not in title[1:]]


def _which(text: str, titles: list[str]) -> str:
    bare = _bare(text)
    titles = sorted(titles, key=lambda title: (not title.casefold().startswith(bare), len(title), title))
    more = f" and {len(titles) - _SHOWN} more" if len(titles) > _SHOWN else ""
    return f"{text!r} is in {len(titles)} titles: {', '.join(map(repr, titles[:_SHOWN]))}{more}; write one out"


def _nearest(text: str, folded: Mapping[str, list[str]]) -> str:
    near = difflib.get_close_matches(text.casefold(), folded, n=3) or difflib.get_close_matches(
        _bare(text), folded, n=3
    )
    hint = "; did you mean " + " or ".join(repr(folded[title][0]) for title in near) if near else ""
    return f"no title {text!r} in the data{hint}"
