# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a table, in one form: file, row, column, what was found, what is accepted, what helps."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

_SHOWN = 60  # characters of a value
_LISTED = 12  # columns of a table


def bad_value(file: Path, row: str, column: str, found: object, expected: str) -> ValueError:
    """The error for one value; the column as it is to be printed, and `expected` may end with an option that helps."""
    return ValueError(f"{file}: {row}, column {column}: found {shown(found)}, expected {expected}")


def empty_value(file: Path, row: str, column: str) -> ValueError:
    """The error for a value that is missing."""
    return ValueError(f"{file}: {row}, column {column}: empty, expected a value in every row")


def shown(found: object) -> str:
    """A value as it is printed: text in quotes, cut where it is long."""
    text = found if isinstance(found, str) else str(found)
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}... ({len(text):,} characters)"


def check_columns(file: Path, wanted: dict[str, str], present: Sequence[str], written: str = "") -> None:
    """Whether a table has every column that is wanted, once.

    Args:
        file: of the table.
        wanted: the option that names a column, such as "--user" -> the column.
        present: the table's columns.
        written: how they were told apart, for the message.

    Raises:
        ValueError: a column that is missing, with those that are there and the nearest; or one that is there twice.
    """
    for option, name in wanted.items():
        if (count := list(present).count(name)) > 1:
            places = " and ".join(str(place) for place, other in enumerate(present, 1) if other == name)
            raise ValueError(f"{file}: {count} columns are called {name!r} (number {places}), expected one")
        if not count:
            raise ValueError(
                f"{file}: no column {name!r} ({option}); {_columns(present)}{written}{_help(option, name, present)}"
            )


def _columns(present: Sequence[str]) -> str:
    listed = ", ".join(map(shown, present[:_LISTED]))
    return f"its columns are {listed}" + (f" and {len(present) - _LISTED} more" if len(present) > _LISTED else "")


def _help(option: str, name: str, present: Sequence[str]) -> str:
    near = nearest(name, present)
    if near is not None:
        return f". Did you mean {option} {_quoted(near)}?"
    if option == "--title":
        return (
            ". --title names another column, that of the items too where they are their own titles; "
            "--titles FILE reads titles from a second table"
        )
    if option == "--time":
        return (
            ". --time names another column; where the rows are in order and have no time, "
            "add a column that numbers them"
        )
    return f". {option} names another column"


def nearest(name: str, present: Sequence[str]) -> str | None:
    """The column that was probably meant: the same in other letters or spaces, one that contains it, or a near one."""
    plain = {_plain(other): other for other in reversed(present)}
    if _plain(name) in plain:
        return plain[_plain(name)]
    close = difflib.get_close_matches(_plain(name), plain, 1, 0.7)
    within = [other for text, other in plain.items() if _plain(name) in text] if len(name) > 2 else []
    return plain[close[0]] if close else within[0] if len(within) == 1 else None


def _plain(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())


def _quoted(name: str) -> str:
    return name if name.isidentifier() else repr(name)
