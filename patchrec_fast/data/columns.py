# SPDX-License-Identifier: Apache-2.0
"""Any CSV or Parquet table with one interaction a row: user, item, title, time and, if there is one, rating."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrow import arrow
from .blocks import BLOCK
from .interactions import Chunk, Codes, Items, Key, Progress

_ROWS = 1 << 18  # of a batch of Parquet


class Columns:
    """One file with named columns; a `Source`.

    Item ids that are integers from 0 to 2^31 - 1 stay; if any is something else, all are numbered in the order of
    their first appearance. The title of an item is the first that is not empty. A time is a whole number, a date,
    a timestamp, or text in ISO 8601.

    Args:
        file: `.csv` (with a header), `.csv.gz`, or `.parquet`.
        user, item, title, time: the names of the columns.
        rating: the name of the column, None for no ratings.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another ending.
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
    ) -> None:
        self._file = Path(file)
        if not self._file.name.endswith((".csv", ".csv.gz", ".parquet")):
            raise ValueError(f"file: expected .csv, .csv.gz or .parquet, got {self._file.name!r}")
        if not self._file.is_file():
            raise FileNotFoundError(f"{self._file}: no such file")
        self._names = {"user": user, "item": item, "title": title, "time": time}
        if rating is not None:
            self._names["rating"] = rating
        self._users, self._items = Codes(), Codes()
        self._titles: list[str] = []  # by number of the item

    @property
    def files(self) -> list[Path]:
        return [self._file]

    def read(self, progress: Progress) -> Iterator[Chunk]:
        """The rows.

        Raises:
            ValueError: not such a file, a missing column, or a value that is missing or of the wrong kind, with its row
                (from 1; the header of a CSV file is row 1).
        """
        pa, _ = arrow()
        row = 1 if self._file.suffix == ".parquet" else 2
        try:
            for batch in self._batches(progress):
                yield self._chunk(batch, row)
                row += batch.num_rows
        except (pa.ArrowException, OSError, EOFError) as error:
            raise ValueError(f"{self._file}: {error}") from error

    def users(self) -> list[Key]:
        return self._users.names()

    def items(self) -> Items:
        return self._items.as_items()

    def titles(self, wanted: NDArray[np.int32]) -> dict[int, str]:
        return dict(zip(self.items().ids.tolist(), self._titles, strict=True))

    def _batches(self, progress: Progress) -> Iterator[Any]:
        pa, parquet = arrow()
        wanted = list(self._names.values())
        if self._file.suffix == ".parquet":
            with parquet.ParquetFile(self._file) as table:
                self._check_columns(table.schema_arrow.names)
                share = self._file.stat().st_size / max(1, table.metadata.num_rows)
                for batch in table.iter_batches(_ROWS, columns=wanted):
                    yield batch
                    progress(round(share * batch.num_rows))
            return
        from pyarrow import csv

        strings = dict.fromkeys((self._names[name] for name in ("user", "item", "title")), pa.string())
        numbers = {self._names["rating"]: pa.float32()} if "rating" in self._names else {}
        compression = "gzip" if self._file.suffix == ".gz" else None
        with self._file.open("rb") as raw, pa.input_stream(raw, compression=compression) as stream:
            table = csv.open_csv(
                stream,
                csv.ReadOptions(block_size=BLOCK),
                csv.ParseOptions(newlines_in_values=True),
                csv.ConvertOptions(column_types=strings | numbers, null_values=[""], strings_can_be_null=True),
            )
            self._check_columns(table.schema.names)
            told = 0
            for batch in table:
                yield batch.select(wanted)
                progress(raw.tell() - told)
                told = raw.tell()

    def _check_columns(self, present: list[str]) -> None:
        for name in self._names.values():
            if present.count(name) != 1:
                raise ValueError(f"{self._file}: expected one column {name!r}, got the columns {present}")

    def _chunk(self, batch: Any, row: int) -> Chunk:
        column = {name: _plain(batch.column(own)) for name, own in self._names.items()}
        for name in ("user", "item", "time", *(["rating"] if "rating" in column else [])):
            if column[name].null_count:
                empty = row + column[name].is_null().to_numpy().argmax()
                raise ValueError(f"{self._file}: row {empty} has no {self._names[name]!r}")
        items = self._items.encode(self._keys(column["item"], "item"))
        self._note_titles(items, column["title"])
        users = self._users.encode(self._keys(column["user"], "user"))
        ratings = self._ratings(column["rating"], row) if "rating" in column else None
        return Chunk(users, items, ratings, self._times(column["time"]))

    def _keys(self, column: Any, name: str) -> Any:
        pa, _ = arrow()
        kinds = pa.types
        if not (kinds.is_integer(column.type) or kinds.is_string(column.type) or kinds.is_large_string(column.type)):
            raise self._wrong(name, column, "integers or text")
        return column

    def _ratings(self, column: Any, row: int) -> NDArray[np.float32]:
        pa, _ = arrow()
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise self._wrong("rating", column, "numbers")
        ratings = column.cast(pa.float32(), safe=False).to_numpy()
        if not np.isfinite(ratings).all():
            raise ValueError(f"{self._file}: row {row + np.isfinite(ratings).argmin()} has a rating that is not finite")
        return ratings

    def _times(self, column: Any) -> NDArray[np.int64]:
        pa, _ = arrow()
        kinds = pa.types
        if kinds.is_integer(column.type) or kinds.is_floating(column.type):
            return column.cast(pa.int64()).to_numpy()  # Arrow refuses a fraction
        text = kinds.is_string(column.type) or kinds.is_large_string(column.type)
        if not (text or kinds.is_timestamp(column.type) or kinds.is_date(column.type)):
            raise self._wrong("time", column, "whole numbers, dates, timestamps or text in ISO 8601")
        zone = getattr(column.type, "tz", None)
        try:
            times = column.cast(pa.timestamp("us", zone), safe=False)
        except pa.ArrowInvalid:  # text with a zone, or no time at all
            times = column.cast(pa.timestamp("us", "UTC"), safe=False)
        return times.cast(pa.int64()).to_numpy()

    def _note_titles(self, items: NDArray[np.int32], column: Any) -> None:
        """Remembers the first title that is not empty of each item."""
        pa, _ = arrow()
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            raise self._wrong("title", column, "text")
        self._titles.extend([""] * (len(self._items) - len(self._titles)))
        from pyarrow import compute

        stripped = compute.utf8_trim_whitespace(column.fill_null(""))
        told = np.flatnonzero(compute.not_equal(stripped, "").to_numpy())
        found, first = np.unique(items[told], return_index=True)
        new = [place for place, item in enumerate(found) if not self._titles[item]]
        texts = stripped.take(pa.array(told[first[new]])).to_pylist()
        for place, text in zip(new, texts, strict=True):
            self._titles[found[place]] = text

    def _wrong(self, name: str, column: Any, expected: str) -> ValueError:
        return ValueError(f"{self._file}: column {self._names[name]!r} is {column.type}, expected {expected}")


def _plain(column: Any) -> Any:
    """The column as a chunked array, categories as the values that they stand for."""
    pa, _ = arrow()
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return pa.chunked_array([column])
