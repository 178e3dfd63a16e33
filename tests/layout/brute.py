# SPDX-License-Identifier: Apache-2.0
"""The prompts that the policies' docstrings promise, built with plain loops: the oracle of the packing tests.

It shares no code with patchrec_fast. A row is a list of items, an item a list of token ids.
"""

from dataclasses import dataclass, field
from itertools import pairwise

Row = list[list[int]]


@dataclass
class Unit:
    """What stands between two separators: one title as text, or one patch of some items."""

    text: bool
    members: list[int] = field(default_factory=list)


def text(history: list[int]) -> list[Unit]:
    return [Unit(True, [item]) for item in history]


def item_patches(history: list[int], keep: int) -> list[Unit]:
    """Item patches for the first n - keep items, text for the last keep."""
    n = len(history)
    return [Unit(place >= n - keep, [item]) for place, item in enumerate(history)]


def session_patches(history: list[int], group: int) -> list[Unit]:
    """Text for the last g; item patches for the g before; older items in sessions of g, aligned to
    the right: the oldest session holds n mod g items if that is not 0.
    """
    n = len(history)
    if n <= group:
        return text(history)
    if n <= 2 * group:
        return item_patches(history, group)
    old = history[: n - 2 * group]
    sessions = []
    odd = len(old) % group  # == n mod g
    if odd:
        sessions.append(Unit(False, old[:odd]))
    for begin in range(odd, len(old), group):
        sessions.append(Unit(False, old[begin : begin + group]))
    return sessions + item_patches(history[n - 2 * group :], group)


def random_item_patches(history: list[int], chosen: list[bool]) -> list[Unit]:
    return [Unit(not patch, [item]) for item, patch in zip(history, chosen, strict=True)]


def dropout(history: list[int], chosen: list[bool]) -> list[Unit]:
    return [Unit(True, [i]) for i, drop in zip(history, chosen, strict=True) if not drop]


@dataclass
class Frame:
    """Everything around the units."""

    titles: dict[int, list[int]]  # item id -> token ids
    prefix: list[int]
    suffix: list[int]
    separator: int
    end_of_turn: int
    separators: bool = True


def prompt(units: list[Unit], frame: Frame, target: int | None = None) -> tuple[list[Row], list[int]]:
    """Rows and labels of one user."""
    rows: list[Row] = [[[token]] for token in frame.prefix]
    for place, unit in enumerate(units):
        if place > 0:
            beside_patch = not unit.text or not units[place - 1].text
            if frame.separators or not beside_patch:
                rows.append([[frame.separator]])
        if unit.text:
            for token in frame.titles[unit.members[0]]:
                rows.append([[token]])
        else:
            rows.append([list(frame.titles[item]) for item in unit.members])
    rows += [[[token]] for token in frame.suffix]
    labels = [-100] * len(rows)
    if target is not None:
        answer = [*frame.titles[target], frame.end_of_turn]
        rows += [[[token]] for token in answer]
        labels += answer
    return rows, labels


def rows_of(batch) -> list[list[Row]]:
    """A PackedBatch read back, user by user, through its offsets alone."""
    ids = batch.ids.tolist()
    token_at, item_at = (level.tolist() for level in batch.offsets)
    users = batch.user_offsets.tolist()
    assert token_at[0] == item_at[0] == users[0] == 0
    assert token_at[-1] == len(ids)
    assert item_at[-1] == len(token_at) - 1
    assert users[-1] == len(item_at) - 1
    return [
        [[ids[token_at[i] : token_at[i + 1]] for i in range(item_at[r], item_at[r + 1])] for r in range(first, last)]
        for first, last in pairwise(users)
    ]
