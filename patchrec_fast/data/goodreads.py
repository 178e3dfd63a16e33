# SPDX-License-Identifier: Apache-2.0
"""Goodreads as the UCSD Book Graph publishes it: one JSON object a line, `.json` or `.json.gz`.

The folder holds one file of interactions (`goodreads_interactions*`: user_id, book_id, rating, date_added, ...) and
one of books (`goodreads_books*`: book_id, title, ...), whole or of one genre. Item ids are Goodreads book ids. The
whole collection is 228 million interactions; memory grows with what the rules keep and with the distinct ids.

The paper's 2,090 users are a selection that it does not describe, so its Goodreads set cannot be made again from
these files; `RULES["goodreads"]` are its rules as far as they are known.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrow import arrow
from .blocks import Block, bad_line, blocks
from .dates import seconds
from .interactions import Chunk, Codes, Items, Key, Progress

TIMES = ("date_added", "date_updated")


class Goodreads:
    """A folder with the two files; a `Source`.

    Args:
        folder: where they are.
        time: the field that orders a user's books, "date_added" or "date_updated".

    Raises:
        FileNotFoundError: one of the files is missing.
        ValueError: there are several of a kind, or another time.
    """

    def __init__(self, folder: str | os.PathLike[str], time: str = "date_added") -> None:
        if time not in TIMES:
            raise ValueError(f"time: expected one of {TIMES}, got {time!r}")
        self._interactions = _one(Path(folder), "goodreads_interactions*.json*")
        self._books = _one(Path(folder), "goodreads_books*.json*")
        self._time = time
        self._users, self._items = Codes(), Codes()

    @property
    def files(self) -> list[Path]:
        return [self._interactions, self._books]

    def read(self, progress: Progress) -> Iterator[Chunk]:
        """The interactions; a rating of 0 is a book on a shelf without a rating.

        Raises:
            ValueError: a line that is not such a JSON object, with its number, or a damaged compressed file.
        """
        pa, _ = arrow()
        fields = {"user_id": pa.string(), "book_id": pa.string(), "rating": pa.int64(), self._time: pa.string()}
        for block in blocks(self._interactions, progress):
            table = _parse(block, fields)
            times = None if table is None else seconds(table.column(self._time))
            if times is None:
                expected = f"a JSON object with user_id, book_id, an integer rating and {self._time}"
                raise bad_line(block, lambda line: self._is_interaction(line), expected)
            yield Chunk(
                self._users.encode(table.column("user_id")),
                self._items.encode(table.column("book_id")),
                table.column("rating").to_numpy().astype(np.float32),
                times,
            )

    def users(self) -> list[Key]:
        return self._users.names()

    def items(self) -> Items:
        return self._items.as_items()

    def titles(self, wanted: NDArray[np.int32]) -> dict[int, str]:
        """The titles of the wanted books, where they have one.

        Raises:
            ValueError: a line that is not a JSON object with a book_id and a title, with its number.
        """
        pa, _ = arrow()
        from pyarrow import compute

        items = self.items()
        ids = dict(zip(map(str, items.names or items.ids.tolist()), items.ids.tolist(), strict=True))
        chosen = set(wanted.tolist())
        names = pa.array([name for name, item in ids.items() if item in chosen], pa.string())
        titles: dict[int, str] = {}
        for block in blocks(self._books, lambda size: None):
            table = _parse(block, {"book_id": pa.string(), "title": pa.string()})
            if table is None:
                raise bad_line(block, _is_book, "a JSON object with book_id and title")
            table = table.filter(compute.is_in(table.column("book_id"), names))
            rows = zip(table.column("book_id").to_pylist(), table.column("title").to_pylist(), strict=True)
            titles.update((ids[book], title.strip()) for book, title in rows)
        return titles

    def _is_interaction(self, line: bytes) -> bool:
        row = _object(line)
        if not line.strip():  # Arrow skips a blank line
            return True
        strings = all(isinstance(row.get(name), str) for name in ("user_id", "book_id", self._time))
        rating = row.get("rating")
        if not strings or isinstance(rating, bool) or not isinstance(rating, int):
            return False
        pa, _ = arrow()
        return seconds(pa.chunked_array([[row[self._time]]])) is not None


def _one(folder: Path, pattern: str) -> Path:
    found = sorted(path for path in folder.glob(pattern) if path.suffix in (".json", ".gz"))
    if not found:
        raise FileNotFoundError(f"{folder}: no file {pattern}")
    if len(found) > 1:
        raise ValueError(f"{folder}: expected one file {pattern}, got {', '.join(path.name for path in found)}")
    return found[0]


def _parse(block: Block, fields: dict[str, Any]) -> Any:
    """The fields as an Arrow table, None where a line is no such object."""
    pa, _ = arrow()
    from pyarrow import json as arrow_json

    try:
        table = arrow_json.read_json(
            pa.BufferReader(block.text),
            arrow_json.ReadOptions(use_threads=False, block_size=len(block.text) + 1),
            arrow_json.ParseOptions(explicit_schema=pa.schema(fields), unexpected_field_behavior="ignore"),
        )
    except pa.ArrowInvalid:
        return None
    return None if any(column.null_count for column in table.columns) else table


def _is_book(line: bytes) -> bool:
    row = _object(line)
    return not line.strip() or all(isinstance(row.get(name), str) for name in ("book_id", "title"))


def _object(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}
