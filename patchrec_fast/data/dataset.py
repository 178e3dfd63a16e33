# SPDX-License-Identifier: Apache-2.0
"""User sequences with titles and splits, and the samples that they make."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..ragged import counting, to_offsets
from .ids import Ids
from .titles import one_line

LARGEST = 2**31 - 1  # of an item's number


class Samples(NamedTuple):
    """S samples of one split, ready for `Packer.pack`."""

    histories: tuple[NDArray[np.int32], NDArray[np.int64]]  # flat item ids (N,), offsets (S + 1,)
    targets: NDArray[np.int32]  # (S,) item ids


@dataclass(frozen=True, eq=False)
class Dataset:
    """The interactions of U users.

    Attributes:
        items: (N,) int32 numbers of items from 0, users one after another, each user's oldest first.
        offsets: (U + 1,) int64, user u is `items[offsets[u]:offsets[u + 1]]`; no user is empty.
        titles: number of an item -> title, for at least every number in `items`.
        splits: split name -> (U, 2) int32, the first and the last position of the user's targets in
            that split, inclusive; -1, -1 where the user has none. No position is in two splits.
        item_ids: number of an item -> the source's own id, for every number in `titles`; given as None, the numbers
            themselves.
        user_ids: row of a user -> the source's own id; given as None, 0 to U - 1.

    Whole numbers of any type are taken for items, offsets and positions.

    Raises:
        TypeError: something else than numbers, titles that are no mapping from numbers to text, ids that are no `Ids`.
        ValueError: a number that does not fit; offsets that do not cut `items` into users; an item without a title, or
            with one that shows nothing or cannot be written as UTF-8; positions outside the user's items or in two
            splits; an item or user without an own id.
    """

    items: NDArray[np.int32]
    offsets: NDArray[np.int64]
    titles: dict[int, str]
    splits: dict[str, NDArray[np.int32]]
    item_ids: Ids = field(default=None)  # type: ignore[assignment]  # never None: __post_init__ makes Ids of it
    user_ids: Ids = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        items = whole(self.items, "items", 0, LARGEST).astype(np.int32, copy=False)
        offsets = _offsets(self.offsets, items)
        titles = _titles(self.titles)
        untitled = np.unique(items[~np.isin(items, np.fromiter(titles, np.int64, len(titles)))])
        if len(untitled):
            raise ValueError(f"titles: {len(untitled)} items of users have none, the first is {untitled[0]}")
        splits = {name: _positions(name, values, np.diff(offsets)) for name, values in self.splits.items()}
        _check_apart(splits)
        made = {
            "items": items,
            "offsets": offsets,
            "titles": titles,
            "splits": splits,
            "item_ids": _item_ids(self.item_ids, titles),
            "user_ids": _user_ids(self.user_ids, len(offsets) - 1),
        }
        for name, value in made.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        """The number of users."""
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        return f"Dataset({len(self)} users, {len(self.titles)} items, {len(self.items)} interactions)"

    def split(self, name: str, max_items: int | None = 100, min_position: int = 3, *, step: int = 1) -> Samples:
        """The samples of a split: for the target at position i, the history is `items[i - K:i]`.

        Args:
            name: "train", "val" or "test".
            max_items: K, the most items of a history; None keeps all.
            min_position: targets at earlier positions are skipped (the paper's 3); at least 1.
            step: as of the `Packer` that gets the samples, which cannot know what was cut off: the oldest items leave
                so many at a time, and K to K + step - 1 are kept.

        Returns:
            Samples, users in order, each user's oldest target first.

        Raises:
            ValueError: an unknown split, or a bound below 1.
            TypeError: a bound that is no whole number.
        """
        if name not in self.splits:
            raise ValueError(f"name: expected one of {sorted(self.splits)}, got {name!r}")
        longest = at_least(len(self.items) if max_items is None else max_items, 1, "max_items")
        first, last = self.splits[name].astype(np.int64).T  # (U,)
        first = np.maximum(first, min(at_least(min_position, 1, "min_position"), len(self.items)))
        counts = np.maximum(last + 1 - first, 0)  # (U,) a user without targets has last == -1
        position = counting(first, counts)  # (S,) inside the user's sequence
        target = np.repeat(self.offsets[:-1], counts) + position  # (S,) inside items
        longest, step = min(longest, len(self.items)), min(at_least(step, 1, "step"), max(1, len(self.items)))
        lengths = position - np.maximum(position - longest, 0) // step * step
        offsets = to_offsets(lengths)
        history = counting(target - lengths, lengths)
        return Samples((self.items[history], offsets), self.items[target])


def whole(values: Any, name: str, least: int, most: int) -> NDArray[Any]:
    """Whole numbers of any type as an array of integers.

    Raises:
        TypeError: not numbers.
        ValueError: one that is not whole or outside of the bounds.
    """
    array = np.asarray(values)
    if array.dtype == object:  # Python's own integers beyond 64 bits, or no numbers
        array = np.array([_index(value, name) for value in array.flat], object).reshape(array.shape)
    elif array.dtype.kind not in "iuf" and array.size:
        raise TypeError(f"{name}: expected whole numbers, got {array.dtype}")
    good = (array >= least) & (array <= most)
    if array.dtype.kind == "f":
        good &= array == np.floor(array)
    if not good.all():
        place = tuple(np.argwhere(~good.astype(bool))[0].tolist())
        found = np.asarray(values, object)[place]  # NumPy makes floats of a list of large integers
        where = ", ".join(map(str, place))
        raise ValueError(f"{name}: expected whole numbers from {least} to {most}, got {found} at {where}")
    return array if array.dtype.kind in "iu" else array.astype(np.int64)


def at_least(value: Any, least: int, name: str) -> int:
    """The value as an int.

    Raises:
        TypeError: no whole number.
        ValueError: below `least`.
    """
    number = _index(value, name)
    if number < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")
    return number


def _index(value: Any, name: str) -> int:
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected a whole number, got {value!r}")
    try:
        return operator.index(int(value) if isinstance(value, (float, np.floating)) and value == int(value) else value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name}: expected a whole number, got {value!r}") from None


def _offsets(values: Any, items: NDArray[np.int32]) -> NDArray[np.int64]:
    if items.ndim != 1:
        raise ValueError(f"items: expected one dimension, got the shape {items.shape}")
    offsets = whole(values, "offsets", 0, 2**63 - 1).astype(np.int64, copy=False)
    if offsets.ndim != 1 or not len(offsets) or offsets[0] != 0 or offsets[-1] != len(items):
        raise ValueError(f"offsets: expected (U + 1,) numbers from 0 to the {len(items)} items, got {_ends(offsets)}")
    if len(short := np.flatnonzero(np.diff(offsets) < 1)):
        begin, end = offsets[short[0] : short[0] + 2]
        what = "has no items" if begin == end else f"ends at {end}, before it begins at {begin}"
        raise ValueError(f"offsets: the user in row {short[0]} {what}")
    return offsets


def _ends(offsets: NDArray[np.int64]) -> str:
    if offsets.ndim != 1 or not len(offsets):
        return f"the shape {offsets.shape}"
    return f"{offsets[0]} to {offsets[-1]}"


def _titles(given: Any) -> dict[int, str]:
    if not isinstance(given, Mapping):
        raise TypeError(f"titles: expected item id -> title, got {type(given).__name__}")
    titles = {_index(item, "titles") if type(item) is not int else item: title for item, title in given.items()}
    for item, title in titles.items():
        if not 0 <= item <= LARGEST:
            raise ValueError(f"titles: expected item ids from 0 to {LARGEST}, got {item}")
        if not isinstance(title, str):
            raise TypeError(f"titles: the title of item {item} is {title!r}, expected a string")
        if not one_line(title):
            raise ValueError(f"titles: item {item} has a title that shows nothing, {title!r}")
        try:
            title.encode()
        except UnicodeEncodeError:
            raise ValueError(f"titles: the title of item {item} has a lone surrogate, {title!r}") from None
    return titles


def _item_ids(given: Ids | None, titles: dict[int, str]) -> Ids:
    """Those of the items with a title."""
    if given is None:
        return Ids(titles)
    try:
        return _checked(given, "item_ids").only(titles)
    except ValueError as error:
        raise ValueError(f"item_ids: an item with a title has none ({error})") from None


def _user_ids(given: Ids | None, users: int) -> Ids:
    if given is None:
        return Ids(range(users))
    if len(_checked(given, "user_ids")) != users:
        raise ValueError(f"user_ids: expected one for each of {users} users, got {len(given)}")
    return given.only(range(users))


def _checked(given: Any, name: str) -> Ids:
    if not isinstance(given, Ids):
        raise TypeError(f"{name}: expected Ids or None, got {type(given).__name__}")
    return given


def _positions(name: str, values: Any, lengths: NDArray[np.int64]) -> NDArray[np.int32]:
    positions = whole(values, f"splits: {name}", -LARGEST - 1, LARGEST)
    if positions.shape != (len(lengths), 2):
        raise ValueError(f"splits: {name}: expected the shape {(len(lengths), 2)}, got {positions.shape}")
    first, last = positions.T
    none = (first == -1) & (last == -1)
    if len(bad := np.flatnonzero(~none & ~((first >= 0) & (first <= last) & (last < lengths)))):
        row = bad[0]
        raise ValueError(
            f"splits: {name}: first, last of row {row} are {first[row]}, {last[row]}, "
            f"expected 0 <= first <= last < {lengths[row]} or -1, -1"
        )
    return positions.astype(np.int32, copy=False)


def _check_apart(splits: dict[str, NDArray[np.int32]]) -> None:
    names = list(splits)
    for place, one in enumerate(names):
        for other in names[:place]:
            (begin, end), (first, last) = splits[one].T, splits[other].T
            both = (begin >= 0) & (first >= 0) & (begin <= last) & (first <= end)
            if both.any():
                row = both.argmax()
                raise ValueError(
                    f"splits: of the user in row {row} {other} has the positions {first[row]} to {last[row]} and {one} "
                    f"{begin[row]} to {end[row]}, expected none in both"
                )
