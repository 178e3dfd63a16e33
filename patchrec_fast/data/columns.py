# SPDX-License-Identifier: Apache-2.0
"""Any table with one interaction a row: user, item, time, title here or in a second table, and rating if there is one.

What the rows are is the readers' business (`delimited`, `jsonl`, `parquet`); what their columns mean is decided
here, a batch at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .arrow import arrow
from .batch import Batch
from .delimited import Delimited, separator
from .faults import shown
from .first_titles import FirstTitles
from .interactions import Chunk, Codes, Items, Key, Progress
from .jsonl import JsonLines
from .parquet import Parquet
from .rawfile import check_encoding
from .times import Numbers, Times
from .values import cast, is_number, is_text

_TEXTS = (".csv", ".tsv", ".txt", ".jsonl")
_ENDINGS = (*_TEXTS, *(f"{ending}.gz" for ending in _TEXTS), ".parquet")
_MISSING = (
    "NaN",
    "nan",
    "NULL",
    "null",
    "None",
    "#N/A",
    "N/A",
    "<NA>",
    r"\N",
)  # ids that other programs write for none
_COMMA = r"^\s*([+-]?[0-9]+),([0-9]{1,2})\s*$"  # a decimal one; three digits may be thousands


class Columns:
    """A table with named columns, and a second one with titles if they are there; a `Source`.

    A text table has a header; its separator (comma, semicolon, tab or pipe) is seen in the first lines. Of JSON lines
    the keys are the columns.

    Item ids that are integers from 0 to 2^31 - 1 stay; if any is something else, all are numbered in the order of
    their first appearance. The title of an item is the first that shows something. A time is a number, a date, a
    timestamp, or text in ISO 8601 or in `time_format`; all rows have the same of these. A rating may have a decimal
    comma.

    On the command line the arguments are `--raw`, `--user`, ..., `--time-format`; messages name them so.

    Args:
        file: `.csv`, `.tsv`, `.txt`, `.jsonl`, each also `.gz`, or `.parquet`.
        user, item, title, time: the names of the columns; one may serve as item and title.
        rating: the name of the column, None for no ratings.
        sep: the separator of text tables, None to see it.
        encoding: of text tables, as "latin-1", "cp1252" or "utf-16"; None for UTF-8.
        time_format: as of `datetime.strptime`, such as "%d.%m.%Y %H:%M". Names of months are English.
        titles: a second table, with one title a row; the first one's `title` is not read then.
        titles_item, titles_title: the names of its columns, None for those of `item` and `title`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another ending, a folder, or a separator, encoding or format of time that is none.
    """

    def __init__(
        self,
        file: str | os.PathLike[str],
        *,
        user: str = "user",
        item: str = "item",
        title: str = "title",
        time: str = "time",
        rating: str | None = None,
        sep: str | None = None,
        encoding: str | None = None,
        time_format: str | None = None,
        titles: str | os.PathLike[str] | None = None,
        titles_item: str | None = None,
        titles_title: str | None = None,
    ) -> None:
        self._sep = None if sep is None else separator(sep)
        self._encoding = check_encoding(encoding)
        self._file = _existing(file, "--raw")
        self._names = {"user": user, "item": item, "time": time}
        if rating is not None:
            self._names["rating"] = rating
        self._titles_file = None if titles is None else _existing(titles, "--titles")
        if self._titles_file is None:
            self._names["title"] = title
            if titles_item is not None or titles_title is not None:
                raise ValueError("--titles-item and --titles-title: expected only together with --titles")
        self._titles_names = {"item": titles_item or item, "title": titles_title or title}
        self._users, self._items = Codes(), Codes()
        self._titles = FirstTitles()
        self._times = Times(time_format)

    @property
    def files(self) -> list[Path]:
        return [self._file] if self._titles_file is None else [self._file, self._titles_file]

    def read(self, progress: Progress) -> Iterator[Chunk]:
        """The rows; then the titles of the second table.

        Raises:
            ValueError: not such a file, a missing column, or a value that is missing or of the wrong kind, with its row
                (from 1; the header of a text table is row 1, of JSON lines a row is a line).
        """
        options = {f"--{name}": own for name, own in self._names.items()}
        for rows in self._open(self._file, options, progress):
            yield self._chunk(Batch(self._file, self._names, *rows))
        if self._titles_file is not None:
            self._read_titles(self._titles_file)

    def users(self) -> list[Key]:
        return self._users.names()

    def items(self) -> Items:
        return self._items.as_items()

    def titles(self, wanted: NDArray[np.int32]) -> dict[int, str]:
        return dict(zip(self.items().ids.tolist(), self._titles.texts(len(self._items)), strict=True))

    def others(self) -> dict[int, str]:
        """After `read`: of each item with several titles the first that is not the one that stays."""
        ids = self.items().ids
        return {int(ids[item]): title for item, title in self._titles.others.items()}

    def _open(self, file: Path, options: dict[str, str], progress: Progress) -> Iterator[tuple[int, Any, Any]]:
        """First row, batch, and what names the place of a row."""
        reader: _Reader
        if file.name.lower().endswith(".parquet"):
            reader = Parquet(file, options)
        elif file.name.lower().removesuffix(".gz").endswith(".jsonl"):
            reader = JsonLines(file, options, self._encoding)
        else:
            reader = Delimited(file, options, self._sep, self._encoding)
        for row, batch in reader.batches(progress):
            yield row, batch, reader.where

    def _chunk(self, batch: Batch) -> Chunk:
        items = self._items.encode(self._ids(batch, "item"))
        if self._titles_file is None:
            self._titles.add(items, batch.titles("item"))
        users = self._users.encode(self._ids(batch, "user"))
        ratings = _ratings(batch) if "rating" in self._names else None
        return Chunk(users, items, ratings, self._moments(batch))

    def _read_titles(self, file: Path) -> None:
        options = {"--titles-item": self._titles_names["item"], "--titles-title": self._titles_names["title"]}
        known, seen = len(self._items), np.zeros(0, np.int32)
        for rows in self._open(file, options, lambda size: None):
            batch = Batch(file, self._titles_names, *rows)
            items = self._items.encode(self._ids(batch, "item"))
            self._titles.add(items, batch.titles("item"))
            seen = np.union1d(seen, items[items < known])
        if known and not len(seen):
            names = [shown(name) for name in self._items.names()]
            raise ValueError(
                f"{file}: column {self._titles_names['item']!r} has none of the items of {self._file}: found "
                f"{', '.join(names[known : known + 3])}, expected such as {', '.join(names[: min(known, 3)])}; "
                "--titles-item names another column"
            )

    def _ids(self, batch: Batch, name: str) -> Any:
        """The dictionary-encoded ids; as text where two tables have to agree on them."""
        pa, _ = arrow()
        from pyarrow import compute

        column = batch.full(name)
        if not (is_text(column.type) or pa.types.is_integer(column.type)):
            if not is_number(column.type):
                raise batch.wrong_type(name, "integers or text")
            column = cast(column, pa.int64(), batch.bad(name, "a whole number of 64 bits, or text"))
        if self._titles_file is not None and name == "item":
            column = column.cast(pa.large_string())
        coded = column.dictionary_encode()
        if is_text(coded.dictionary.type):
            for wrong, expected in (
                (compute.match_substring_regex(coded.dictionary, r"^\s*$"), "an id that is more than spaces"),
                (compute.match_substring_regex(coded.dictionary, r"\p{Cc}"), "an id without control characters"),
                (compute.is_in(coded.dictionary, _missing(coded)), "an id; this marks a missing value"),
            ):
                if (number := compute.index(wrong, True).as_py()) >= 0:
                    raise batch.bad(name, expected)(compute.index(coded.indices, number).as_py())
        return coded

    def _moments(self, batch: Batch) -> Numbers:
        try:
            return self._times.read(batch.full("time"), lambda place, expected: batch.bad("time", expected)(place))
        except TypeError as error:
            raise batch.wrong_type("time", str(error)) from error


class _Reader(Protocol):
    def batches(self, progress: Progress) -> Iterator[tuple[int, Any]]: ...

    def where(self, row: int) -> str: ...


def _missing(coded: Any) -> Any:
    pa, _ = arrow()
    return pa.array(_MISSING, coded.dictionary.type)


def _existing(file: str | os.PathLike[str], option: str) -> Path:
    path = Path(file)
    if path.is_dir():
        raise ValueError(f"{option}: {path} is a folder, expected a file")
    if not path.name.lower().endswith(_ENDINGS):
        endings = ", ".join(_TEXTS)
        raise ValueError(
            f"{option}: {path}: expected a name that ends in {endings}, each with or without .gz, or in .parquet"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{option}: {path}: no such file")
    return path


def _ratings(batch: Batch) -> NDArray[np.float32]:
    pa, _ = arrow()
    from pyarrow import compute

    column, kind = batch.full("rating"), pa.float32()
    if not (is_number(column.type) or is_text(column.type)):
        raise batch.wrong_type("rating", "numbers")
    if is_text(column.type):
        try:
            column = column.cast(kind)
        except pa.ArrowInvalid:
            column = compute.replace_substring_regex(column, _COMMA, r"\1.\2")
    bad = batch.bad("rating", "a finite number, as 4, 4.5 or 4,5")
    ratings = cast(column, kind, bad, safe=False).to_numpy(zero_copy_only=False)
    if not np.isfinite(ratings).all():
        raise bad(int(np.isfinite(ratings).argmin()))
    return ratings
