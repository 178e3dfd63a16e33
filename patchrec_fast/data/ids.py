# SPDX-License-Identifier: Apache-2.0
"""The user's own ids of items and users, and the numbers that stand for them in arrays."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Collection, Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Key = int | str
_KINDS = ((-(2**63), 2**63 - 1), (0, 2**64 - 1))  # the least and the largest own ids that are numbers together
_SHOWN = 3  # ids that a message proposes, or names


class Ids:
    """Own ids of items or users, all different: whole numbers of 64 bits with or without a sign, or text.

    Where one is text, or no such number, all are text. Text finds the number that it writes, so that "42" from a
    command line finds 42; "042" does not.

    Args:
        numbers: those of the items or users; a range or a dictionary is held, and not copied.
        own: the own id of each, in the same order; None where the id is the number plus `first`, which takes no memory.
        first: as said.

    Attributes:
        first: None where the own ids were given one by one.

    Raises:
        TypeError: an own id that is neither a whole number nor text.
        ValueError: not one for each number, two that are equal, or text that UTF-8 cannot hold.
    """

    def __init__(self, numbers: Collection[int], own: Iterable[Key] | None = None, *, first: int = 0) -> None:
        self.first = first if own is None else None
        self._numbers = numbers if isinstance(numbers, dict | range) else dict.fromkeys(map(operator.index, numbers))
        self._own: dict[int, Key] | list[Key] = {}
        if own is not None:
            keys = _alike(own)
            if len(keys) != len(self._numbers):
                raise ValueError(f"ids: expected one for each of {len(self._numbers)}, got {len(keys)}")
            _check_different(keys)
            rows = self._numbers == range(len(keys))
            self._own = keys if rows else dict(zip(self._numbers, keys, strict=True))

    @property
    def same(self) -> bool:
        """Whether every own id is the number itself."""
        return self.first == 0

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Key]:
        """The own ids, in the order of the numbers as they were given."""
        return (self.of(number) for number in self._numbers)

    def __contains__(self, own: Key) -> bool:
        return self._number(_checked(own)) is not None

    def __repr__(self) -> str:
        return f"Ids({len(self)} {'numbers' if self._whole else 'texts'})"

    def of(self, number: int) -> Key:
        """The own id of a number.

        Raises:
            ValueError: no such number.
        """
        number = operator.index(number)
        if number not in self._numbers:
            raise ValueError(f"number: expected one of {len(self)} items or users, got {number}")
        return self._own[number] if self.first is None else number + self.first

    def of_all(self, numbers: Iterable[int]) -> list[Key]:
        """The own id of each number, as `of`."""
        return [self.of(number) for number in numbers]

    def only(self, numbers: Collection[int]) -> Ids:
        """The own ids of these numbers alone.

        Raises:
            ValueError: a number without one.
        """
        return Ids(numbers, self.of_all(numbers)) if self.first is None else Ids(numbers, first=self.first)

    def find(self, own_id: Key, what: str = "item") -> int:
        """The number of an own id.

        Args:
            own_id: a whole number or text.
            what: is found, for the message.

        Raises:
            TypeError: something else.
            ValueError: no such id; the message names it and those that are written much like it.
        """
        own_id = _checked(own_id)
        if (number := self._number(own_id)) is not None:
            return number
        near = [repr(key) for key in self._near(str(own_id))]
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"no {what} {own_id!r} among the {len(self):,} of the data{hint}")

    def find_all(self, own_ids: Iterable[Key], what: str = "item") -> NDArray[np.int64]:
        """(n,) int64, the numbers of n own ids, as `find`.

        Raises:
            TypeError: one that is neither a whole number nor text.
            ValueError: ids that there are not; the message counts them, and names the first as `find` does.
        """
        keys = [_checked(own) for own in own_ids]
        numbers = [self._number(own) for own in keys]
        strangers = [own for own, number in zip(keys, numbers, strict=True) if number is None]
        if strangers:
            try:
                self.find(strangers[0], what)
            except ValueError as error:
                raise ValueError(f"{error} ({len(strangers)} of the {len(keys)} ids are not there)") from None
        return np.array(numbers, np.int64)

    @property
    def _whole(self) -> bool:
        """Whether the own ids are numbers."""
        return self.first is not None or not isinstance(next(iter(self), 0), str)

    def _number(self, own: Key) -> int | None:
        if not self._whole:
            return self._places.get(str(own))
        whole = as_integer(own)
        if whole is None or self.first is None:
            return None if whole is None else self._places.get(whole)
        return whole - self.first if whole - self.first in self._numbers else None

    @cached_property
    def _places(self) -> dict[Key, int]:
        """Own id -> number."""
        return dict(zip(self, self._numbers, strict=True))

    def _near(self, text: str) -> list[Key]:
        """Own ids like the text: first those that differ in case or leading zeros alone.

        One wrong character is in the first half or in the second, so the other half is right.
        """
        wanted = _folded(text)
        half = (len(wanted) + 1) // 2
        head, tail = wanted[:half], wanted[-half:]
        found: dict[str, Key] = {}
        for key in self:
            folded = _folded(str(key))
            if wanted and (folded.startswith(head) or folded.endswith(tail)):
                found.setdefault(folded, key)
        return [found[folded] for folded in difflib.get_close_matches(wanted, found, _SHOWN)]


def as_integer(own: Key) -> int | None:
    """The whole number of 64 bits that an id is or that its text writes; None for any other, as "007" or "1.5"."""
    try:
        number = int(own)
    except ValueError:
        return None
    return number if -(2**63) <= number < 2**64 and str(number) == str(own) else None


def _folded(text: str) -> str:
    return text.strip().casefold().lstrip("0")


def _checked(own: Any) -> Key:
    if isinstance(own, str):
        return str(own)
    try:
        if not isinstance(own, bool | np.bool_):
            return operator.index(own)
    except TypeError:
        pass
    raise TypeError(f"ids: expected whole numbers or text, got {own!r} ({type(own).__name__})")


def _alike(own: Iterable[Key]) -> list[Key]:
    """All of them as whole numbers, or all as text."""
    keys = [_checked(each) for each in own]
    whole = [key for key in keys if isinstance(key, int)]
    if len(whole) == len(keys) and any(
        least <= min(whole, default=0) and max(whole, default=0) <= most for least, most in _KINDS
    ):
        return keys
    texts: list[Key] = list(map(str, keys))
    for text in texts:
        try:
            str(text).encode()
        except UnicodeEncodeError:
            raise ValueError(f"ids: {text!r} has a lone surrogate, which UTF-8 cannot hold") from None
    return texts


def _check_different(keys: list[Key]) -> None:
    if len(set(keys)) == len(keys):
        return
    seen: set[Key] = set()
    for key in keys:
        if key in seen:
            raise ValueError(f"ids: {key!r} is given {keys.count(key)} times, expected once")
        seen.add(key)
