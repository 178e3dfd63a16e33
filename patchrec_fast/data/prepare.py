# SPDX-License-Identifier: Apache-2.0
"""From raw interactions to a `Dataset`: filter, one of each pair, titles, order in time, splits.

The steps, in this order:
1. Ratings above a bound are kept, chunk by chunk, so that memory grows with what is kept and not with the files.
2. Of several kept interactions of one user with one item the earliest stays, or all.
3. Titles become one clean line without HTML entities, then what the rules say of parentheses and articles (`titles`).
   An item without a title is an error, or its interactions go.
4. Users and items with too few interactions go. Both are counted once, on the same table, and not again after the
   other has gone: users may end with fewer.
5. Each user's interactions are sorted by time, equal times in the order of the file. Users come in the order of their
   first kept interaction in the files.
6. Splits by time, by leaving out the last ones of each user, or by the files (`splits.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from .._options import Articles, Parentheses, Split
from ..ragged import to_offsets
from .dataset import Dataset, at_least
from .ids import Ids
from .interactions import Items, Progress, Source
from .split_files import SplitFiles
from .splits import SHARES, check_shares, leave_one_out, split_by_number, split_by_time
from .tally import SHOWN, Tally, repeats, shared
from .titles import (
    decode_entities,
    drop_parentheses,
    move_article,
    one_line,
)

_MOST = 2**31 - 1  # interactions that a bound may ask for


@dataclass(frozen=True)
class Rules:
    """What is kept.

    Attributes:
        above_rating: ratings above this; None keeps all and needs no ratings.
        min_user: the fewest interactions of a user.
        min_item: the fewest interactions of an item.
        counted: what the two bounds above count, the interactions "kept" by the rating or "all".
        untitled: an item without a title is an "error", or "drop" drops its interactions.
        repeats: later interactions of a user with an item are dropped ("drop"), or kept ("keep": music, groceries).
        catalogue: titles of "all" items of the source, or only of those "used" in the end.
        parentheses, articles: of titles, as of `titles.clean_title`.
        split: cuts at two moments ("time"), leaves out the last two interactions of each user ("leave-one-out"), or
            takes train, val and test from the "files" of a `SplitFiles`.
        shares: of train, val and test by time.

    Raises:
        ValueError: a bound below 1 or above 2^31 - 1, an unknown word, a rating that is not finite, or shares that are
            no shares.
        TypeError: a bound that is no whole number.
    """

    above_rating: float | None = None
    min_user: int = 1
    min_item: int = 1
    counted: Literal["kept", "all"] = "kept"
    untitled: Literal["error", "drop"] = "error"
    repeats: Literal["drop", "keep"] = "drop"
    catalogue: Literal["all", "used"] = "used"
    parentheses: Parentheses = "keep"
    articles: Articles = "keep"
    split: Split = "time"
    shares: tuple[float, float, float] = SHARES

    def __post_init__(self) -> None:
        for name in ("min_user", "min_item"):
            if at_least(getattr(self, name), 1, name) > _MOST:
                raise ValueError(f"{name}: expected at most {_MOST}, got {getattr(self, name)}")
        if self.above_rating is not None and not np.isfinite(np.float64(self.above_rating)):
            raise ValueError(f"above_rating: expected a finite number, got {self.above_rating}")
        for name, choices in (
            ("counted", ("kept", "all")),
            ("untitled", ("error", "drop")),
            ("repeats", ("drop", "keep")),
            ("catalogue", ("all", "used")),
            ("parentheses", get_args(Parentheses)),
            ("articles", get_args(Articles)),
            ("split", get_args(Split)),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: expected one of {choices}, got {getattr(self, name)!r}")
        check_shares(self.shares)
        if self.split != "time" and self.shares != SHARES:
            raise ValueError(f"shares: expected only with the split 'time', got {self.shares} with {self.split!r}")


_MOVIELENS = Rules(above_rating=3, catalogue="all", parentheses="drop", articles="english")
# The paper's, found by comparing with its prepared data. Goodreads: its users have as few as 19 ratings of 5 and its
# items as few as none, so both bounds must have counted interactions of every rating.
RULES = {
    "ml-100k": replace(_MOVIELENS, min_user=21),
    "movielens": _MOVIELENS,
    "goodreads": Rules(above_rating=4, min_user=50, min_item=10, counted="all", untitled="drop"),
    "table": Rules(),
}


class Prepared(NamedTuple):
    """A dataset, and how it came to be."""

    dataset: Dataset
    rules: Rules
    counts: dict[str, int]  # interactions left after each step
    tallies: dict[str, Tally]  # what was dropped, merged or changed, where there was any


def prepare(source: Source, rules: Rules, progress: Progress = lambda size: None) -> Prepared:
    """Reads a source and applies the rules.

    Args:
        source: `MovieLens`, `Goodreads`, `Columns`, or anything else that is a `Source`.
        rules: `RULES[name]`, or others.
        progress: called with the number of bytes that have been read.

    Raises:
        ValueError: a file that cannot be read, with the line; ratings wanted where there are none; an item without a
            title; nothing left; files of splits that are not one after another in time.
        ImportError: pyarrow is not installed.
    """
    if (rules.split == "files") != isinstance(source, SplitFiles):
        raise ValueError(f"split: expected 'files' for SplitFiles and only for it, got {rules.split!r}")
    table = _collect(source, rules, progress)
    tallies = {"rated too low": Tally(table.counts["read"] - len(table.users), [])}
    items, user_names = source.items(), source.users()
    if rules.repeats == "drop":
        repeated = _repeated(table)
        tallies["repeats"] = repeats(table.users, table.items, repeated, user_names, items)
        table.drop(repeated, "one of each pair")
    titles, changes = _titled(table, items, source, rules, tallies)
    table.drop(~_frequent(table, rules), "frequent enough")
    users, times, offsets = table.sort()
    ids = items.ids[table.items]
    if rules.catalogue == "used":
        titles = {item: titles[item] for item in np.unique(ids).tolist()}
    item_ids = Ids(titles) if items.names is None else Ids(items.ids.tolist(), items.names)
    user_ids = Ids(range(len(users)), map(user_names.__getitem__, users.tolist()))
    if rules.split == "files":
        _check_order(table, offsets, user_ids, source.files)
        splits = split_by_number(table.parts, offsets)
    else:
        splits = leave_one_out(offsets) if rules.split != "time" else split_by_time(times, offsets, rules.shares)
    dataset = Dataset(ids, offsets, titles, splits, item_ids, user_ids)
    tallies |= _of_titles(titles, changes, source.others(), dataset.item_ids)
    return Prepared(dataset, rules, table.counts, {name: tally for name, tally in tallies.items() if tally.count})


@dataclass
class _Table:
    """The interactions that are left, and what has been counted."""

    users: NDArray[np.int32]
    items: NDArray[np.int32]
    times: NDArray[np.int64] | NDArray[np.float64]
    counts: dict[str, int]
    parts: NDArray[np.int8] = field(default_factory=lambda: np.zeros(0, np.int8))  # the splits of `SplitFiles`
    of_user: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # over all, where rules say so
    of_item: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def drop(self, rows: NDArray[np.bool_], step: str) -> None:
        if rows.any():
            keep = ~rows
            self.take(np.flatnonzero(keep))
        self.counts[step] = len(self.users)
        if not len(self.users):
            left = ", ".join(f"{name} {count:,}" for name, count in self.counts.items())
            raise ValueError(f"no interactions are left by the rules: {left}")

    def take(self, rows: NDArray[np.int64]) -> None:
        self.users, self.items, self.times = self.users[rows], self.items[rows], self.times[rows]
        self.parts = self.parts[rows]

    def sort(self) -> tuple[NDArray[np.int32], NDArray[np.int64] | NDArray[np.float64], NDArray[np.int64]]:
        """Sorts by user and time; the users (U,) in their order, the times (N,) and the offsets (U + 1,)."""
        names, first, number = np.unique(self.users, return_index=True, return_inverse=True)
        by_appearance = np.argsort(first)
        rank = np.empty(len(names), np.int32)
        rank[by_appearance] = np.arange(len(names), dtype=np.int32)
        rank_of_row = rank[number]
        order = np.lexsort((self.times, rank_of_row))  # stable
        self.take(order)
        lengths = np.bincount(rank_of_row)
        return names[by_appearance], self.times, to_offsets(lengths)


def _collect(source: Source, rules: Rules, progress: Progress) -> _Table:
    users, items, parts = [], [], []
    times: list[NDArray[Any]] = []
    table = _Table(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.int64), {"read": 0})
    for chunk in source.read(progress):
        table.counts["read"] += len(chunk.users)
        if rules.counted == "all":
            table.of_user = _add(table.of_user, chunk.users)
            table.of_item = _add(table.of_item, chunk.items)
        if rules.above_rating is not None:
            if chunk.ratings is None:
                raise ValueError(f"above_rating: expected None for a source without ratings, got {rules.above_rating}")
            keep = chunk.ratings > rules.above_rating
            chunk = chunk._replace(users=chunk.users[keep], items=chunk.items[keep], times=chunk.times[keep])
        users.append(chunk.users)
        items.append(chunk.items)
        times.append(chunk.times)
        parts.append(np.full(len(chunk.users), chunk.part, np.int8))
    if not users:
        raise ValueError(f"{source.files[0]}: no interactions")
    table.users, table.items, table.times = np.concatenate(users), np.concatenate(items), np.concatenate(times)
    table.parts = np.concatenate(parts)
    table.drop(np.zeros(len(table.users), bool), "rated high enough")
    return table


def _check_order(table: _Table, offsets: NDArray[np.int64], users: Ids, files: list[Path]) -> None:
    """Raises ValueError where a user's val is not after the train, or the test not after the val; equal times are."""
    falls = np.diff(table.parts) < 0
    falls[offsets[1:-1] - 1] = False  # from one user to the next
    if falls.any():
        row = int(falls.argmax())
        user = users.of(int(np.searchsorted(offsets, row, "right")) - 1)
        early, late = (files[part] for part in table.parts[row : row + 2])
        raise ValueError(
            f"{early}: user {user!r} has an interaction here that is before one in {late.name}; expected each user's "
            "train before val before test"
        )


def _add(counts: NDArray[np.int64], numbers: NDArray[np.int32]) -> NDArray[np.int64]:
    total = np.bincount(numbers, minlength=len(counts))
    total[: len(counts)] += counts
    return total


def _repeated(table: _Table) -> NDArray[np.bool_]:
    """Interactions of a user with an item that the user had before."""
    pair = table.users.astype(np.int64) * (int(table.items.max()) + 1) + table.items
    repeated = np.zeros(len(pair), bool)
    ordered = np.sort(pair)
    if (ordered[1:] == ordered[:-1]).any():  # sorting values is much cheaper than the order of two keys
        order = np.lexsort((table.times, pair))
        repeated[order[1:]] = pair[order[1:]] == pair[order[:-1]]
    return repeated


_Changes = dict[str, dict[int, tuple[str, str]]]  # kind of change -> item id -> title before and after


def _titled(
    table: _Table, items: Items, source: Source, rules: Rules, tallies: dict[str, Tally]
) -> tuple[dict[int, str], _Changes]:
    """The titles, each one clean line, and what was changed for it.

    Interactions with items that have no title are dropped, where the rules say so.
    """
    used = np.unique(table.items)
    given = source.titles(items.ids[used])
    steps: dict[str, Callable[[str], str]] = {
        "HTML entities": decode_entities,
        "control characters and spaces": one_line,
        "parentheses": lambda title: drop_parentheses(title, rules.parentheses),
        "articles": lambda title: move_article(title, rules.articles),
    }
    changes: _Changes = {name: {} for name in steps}
    titles = {}
    for item, title in given.items():
        title = title.strip()
        for name, step in steps.items():
            after = step(title)
            if after != title:
                changes[name][item] = title, after
            title = after
        if title:
            titles[item] = title
    has_title = np.isin(items.ids, np.fromiter(titles, np.int64, len(titles)))
    untitled = used[~has_title[used]]
    examples = [items.own(number) for number in untitled[:SHOWN].tolist()]
    if len(untitled) and rules.untitled == "error":
        rows = int((~has_title[table.items]).sum())
        raise ValueError(
            f"{source.files[-1]}: {len(untitled):,} of {len(used):,} items have no title, as "
            f"{', '.join(map(repr, examples))}; --untitled drop leaves out their {rows:,} rows"
        )
    tallies["untitled items"] = Tally(len(untitled), examples)
    table.drop(~has_title[table.items], "with a title")
    return titles, changes


def _of_titles(titles: dict[int, str], changes: _Changes, others: dict[int, str], own: Ids) -> dict[str, Tally]:
    """Counts of the titles that are left."""
    several = [item for item in others if item in titles]
    tallies = {
        "items with several titles": Tally(
            len(several),
            [{"item": own.of(item), "kept": titles[item], "other": others[item]} for item in several[:SHOWN]],
        ),
        "shared titles": shared(titles, own),
    }
    for name, pairs in changes.items():
        kept = [pair for item, pair in pairs.items() if item in titles]
        tallies[name] = Tally(len(kept), [{"before": before, "after": after} for before, after in kept[:SHOWN]])
    return tallies


def _frequent(table: _Table, rules: Rules) -> NDArray[np.bool_]:
    if rules.counted == "kept":
        of_user, of_item = np.bincount(table.users), np.bincount(table.items)
    else:
        of_user, of_item = table.of_user, table.of_item
    return (of_user[table.users] >= rules.min_user) & (of_item[table.items] >= rules.min_item)
