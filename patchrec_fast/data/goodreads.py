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
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._options import BOOK_TIMES
from .arrow import arrow
from .blocks import Block, bad_line, blocks, lines
from .dates import EXAMPLE, seconds
from .interactions import Chunk, Codes, Items, Key, Progress

_SURROGATE = re.compile("[\ud800-\udfff]")


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
        if time not in BOOK_TIMES:
            raise ValueError(f"time: expected one of {BOOK_TIMES}, got {time!r}")
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
            if (times := seconds(table.column(self._time))) is None:
                raise self._bad_date(block, table.column(self._time).to_pylist())
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
            table = table.filter(compute.is_in(table.column("book_id"), names))
            rows = zip(table.column("book_id").to_pylist(), table.column("title").to_pylist(), strict=True)
            titles.update((ids[book], title.strip()) for book, title in rows)
        return titles

    def others(self) -> dict[int, str]:
        return {}  # a book has one line

    def _bad_date(self, block: Block, dates: list[str]) -> ValueError:
        pa, _ = arrow()
        place = next(place for place, date in enumerate(dates) if seconds(pa.chunked_array([[date]])) is None)
        filled = [number for number, line in lines(block) if line.strip()]
        return ValueError(
            f"{block.path}: line {filled[min(place, len(filled) - 1)]}: {self._time} is {dates[place]!r}, "
            f"expected a date like {EXAMPLE!r}"
        )


def _one(folder: Path, pattern: str) -> Path:
    found = sorted(path for path in folder.glob(pattern) if path.suffix in (".json", ".gz"))
    if not found:
        raise FileNotFoundError(f"{folder}: no file {pattern}")
    if len(found) > 1:
        raise ValueError(f"{folder}: expected one file {pattern}, got {', '.join(path.name for path in found)}")
    return found[0]


def _parse(block: Block, fields: dict[str, Any]) -> Any:
    """The fields as an Arrow table. What Arrow refuses is read line by line.

    Raises:
        ValueError: a line that is no object with these fields, with its number.
    """
    pa, _ = arrow()
    from pyarrow import json as arrow_json

    schema = pa.schema(fields)
    try:
        table = arrow_json.read_json(
            pa.BufferReader(block.text),
            arrow_json.ReadOptions(use_threads=False, block_size=len(block.text) + 1),
            arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
        table.validate(full=True)  # the parser lets through what is not UTF-8
        if not any(column.null_count for column in table.columns):
            return table
    except pa.ArrowInvalid:
        pass
    rows = []
    for number, line in lines(block):
        if line.strip():
            try:
                rows.append(_row(line, fields))
            except ValueError as error:
                raise bad_line(block.path, number, line, str(error)) from error
    return pa.Table.from_pylist(rows, schema)


def _row(line: bytes, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of one line; another key may come twice, or hold what is no text.

    Raises:
        ValueError: what is wrong with it.
    """
    pa, _ = arrow()
    wanted = "a JSON object with " + ", ".join(
        name if kind == pa.string() else f"an integer {name}" for name, kind in fields.items()
    )
    expected = f"expected {wanted}"
    try:
        pairs = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}, {expected}") from error
    if not isinstance(pairs, _Pairs):
        raise ValueError(expected)
    row: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            if name in row and row[name] != value:
                raise ValueError(f"has {name} twice, {row[name]!r} and {value!r}, {expected}")
            row[name] = value
    if isinstance(row.get("title"), str):
        row["title"] = _SURROGATE.sub("\0", row["title"])  # goes, and is counted, as a control character does
    for name, kind in fields.items():
        value = row.get(name)
        if kind == pa.string():
            good = isinstance(value, str) and not _SURROGATE.search(value)
        else:
            good = isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63
        if not good:
            raise ValueError(f"has {'no ' + name if name not in row else f'{name} {value!r}'[:80]}, {expected}")
    return row


class _Pairs(list[Any]):
    """The keys and values of a JSON object, repeated ones too."""
