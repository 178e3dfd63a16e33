# SPDX-License-Identifier: Apache-2.0
"""What every reader of raw data yields: chunks of interactions, with users and items numbered.

A reader never holds a whole file: `prepare` takes one chunk, keeps the rows that it wants and drops the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .arrow import arrow
from .ids import Key as Key
from .ids import as_integer

Progress = Callable[[int], object]  # told how many bytes of the files have been read since the last call


class Chunk(NamedTuple):
    """n interactions, in the order of the file."""

    users: NDArray[np.int32]  # (n,) numbers given by `Codes`
    items: NDArray[np.int32]  # (n,) numbers given by `Codes`
    ratings: NDArray[np.float32] | None  # (n,), None where the source has no ratings
    times: NDArray[np.int64]  # (n,) in any unit, larger is later


class Source(Protocol):
    """Raw data that `prepare` can read."""

    @property
    def files(self) -> list[Path]:
        """The files that are read."""

    def read(self, progress: Progress) -> Iterator[Chunk]:
        """Reads the interactions once, from the beginning."""

    def users(self) -> list[Key]:
        """After `read`: the user's own id of every number."""

    def items(self) -> Items:
        """After `read`: the item id of every number."""

    def titles(self, wanted: NDArray[np.int32]) -> dict[int, str]:
        """After `read`: titles by item id, of the wanted ids at least where the source has them."""


class Items(NamedTuple):
    """Item ids of a source."""

    ids: NDArray[np.int32]  # (I,) the id of number 0, 1, ...
    names: list[Key] | None = None  # the source's own ids, where they are not those

    def own(self, number: int) -> Key:
        """What the source calls an item."""
        return self.names[number] if self.names else int(self.ids[number])


class Codes:
    """Numbers values 0, 1, ... in the order of their first appearance, over any number of columns."""

    def __init__(self) -> None:
        self._numbers: dict[Key, int] = {}

    def encode(self, column: Any) -> NDArray[np.int32]:
        """The numbers of an Arrow array, chunked or not, without nulls; vectorised but for the distinct values."""
        pa, _ = arrow()
        whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        encoded = whole.dictionary_encode()
        numbers = self._numbers
        values = encoded.dictionary.to_pylist()
        table = np.fromiter((numbers.setdefault(value, len(numbers)) for value in values), np.int32, len(values))
        return table[encoded.indices.to_numpy()]

    def __len__(self) -> int:
        return len(self._numbers)

    def names(self) -> list[Key]:
        """The values; as integers where each writes one, as in a CSV file, whose columns are text."""
        whole = [as_integer(value) for value in self._numbers]
        return [each for each in whole if each is not None] if None not in whole else list(self._numbers)

    def as_items(self) -> Items:
        """The values themselves as ids where all are integers from 0 that fit int32, otherwise their numbers."""
        names = self.names()
        if all(isinstance(name, int) and 0 <= name < 2**31 for name in names):
            return Items(np.array(names, np.int32))
        return Items(np.arange(len(names), dtype=np.int32), names)
