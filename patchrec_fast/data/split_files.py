# SPDX-License-Identifier: Apache-2.0
"""Training, validation and test that come each in files of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .arrow import arrow
from .interactions import Chunk, Codes, Items, Key, Progress, Source


class SplitFiles:
    """Three sources as one, for `Rules(split="files")`; a `Source`.

    A user or an item is the same in all of them whose own id is written alike. The title of an item is that of the
    first source that has one. The interactions of val and test are held while they are read.

    Args:
        train, val, test: such as `Columns`; each has its interactions in its first file.
    """

    def __init__(self, train: Source, val: Source, test: Source) -> None:
        self._sources = (train, val, test)
        self._users, self._items = Codes(), Codes()

    @property
    def files(self) -> list[Path]:
        """The three files of interactions, then the others."""
        given = [source.files for source in self._sources]
        return list(dict.fromkeys([*(files[0] for files in given), *(file for files in given for file in files[1:])]))

    def read(self, progress: Progress) -> Iterator[Chunk]:
        """The interactions of train, then of val, then of test.

        Raises:
            ValueError: as the sources.
        """
        train, *others = self._sources
        yield from train.read(progress)  # its numbers are the first here as well
        self._number(train)
        for part, source in enumerate(others, 1):
            chunks = list(source.read(progress))
            users, items = self._number(source)
            while chunks:
                chunk = chunks.pop(0)
                yield chunk._replace(users=users[chunk.users], items=items[chunk.items], part=part)

    def users(self) -> list[Key]:
        return self._users.names()

    def items(self) -> Items:
        return self._items.as_items()

    def titles(self, wanted: NDArray[np.int32]) -> dict[int, str]:
        items = self.items()
        ids = {str(items.own(number)): item for number, item in enumerate(items.ids.tolist())}
        titles: dict[int, str] = {}
        for source in self._sources:
            theirs = source.items()
            own = {item: str(theirs.own(number)) for number, item in enumerate(theirs.ids.tolist())}
            for item, title in source.titles(theirs.ids).items():
                if title.strip() and (item in own or items.names is None):  # one of no interaction has no other id
                    titles.setdefault(ids[own[item]] if item in own else item, title)
        return titles

    def _number(self, source: Source) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The numbers here of each user and item of a source that has been read."""
        pa, _ = arrow()
        items = source.items()
        own = map(items.own, range(len(items.ids)))
        users, texts = (pa.array(list(map(str, keys)), pa.large_string()) for keys in (source.users(), own))
        return self._users.encode(users), self._items.encode(texts)
