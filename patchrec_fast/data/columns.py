# SPDX-License-Identifier: Apache-2.0
"""Any CSV or Parquet table with one interaction a row: user, item, title, time and, if there is one, rating."""

from __future__ import annotations

import csv
import gzip
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrow import arrow
from .blocks import BLOCK
from .interactions import Chunk, Codes, Items, Key, Progress
from .values import cast, is_number, is_text, plain

_ROWS = 1 << 18  # of a batch of Parquet
_SHOWN = 80
_SEEN = r"[^\p{Cc}\p{Cf}\p{Z}\s]"  # a character that shows something


class Columns:
    """One file with named columns; a `Source`.

    Item ids that are integers from 0 to 2^31 - 1 stay; if any is something else, all are numbered in the order of
    their first appearance. The title of an item is the first that shows something. A time is a whole number, a date,
    a timestamp, or text in ISO 8601; all rows have the same of these.

    Args:
        file: `.csv` (with a header), `.csv.gz`, or `.parquet`.
        user, item, title, time: the names of the columns.
        rating: the name of the column, None for no ratings.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another ending, or a folder.
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
        if self._file.is_dir():
            raise ValueError(f"{self._file}: is a folder, expected a file")
        if not self._file.is_file():
            raise FileNotFoundError(f"{self._file}: no such file")
        self._names = {"user": user, "item": item, "title": title, "time": time}
        if rating is not None:
            self._names["rating"] = rating
        self._users, self._items = Codes(), Codes()
        self._titles: list[str] = []  # by number of the item
        self._clock: Callable[[Any, int], Any] | None = None  # what reads the times, the first row decides
        self._checked = False  # the quotes of a CSV file

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
        except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError, MemoryError, OverflowError) as error:
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
        from pyarrow import csv as arrow_csv

        strings = dict.fromkeys(wanted, pa.large_string())
        compression = "gzip" if self._file.suffix == ".gz" else None
        with self._file.open("rb") as raw, pa.input_stream(raw, compression=compression) as stream:
            table = arrow_csv.open_csv(
                stream,
                arrow_csv.ReadOptions(block_size=BLOCK),
                arrow_csv.ParseOptions(newlines_in_values=True),
                arrow_csv.ConvertOptions(column_types=strings, null_values=[""], strings_can_be_null=True),
            )
            self._check_columns(table.schema.names)
            told = 0
            for batch in table:
                self._check_quotes(batch)
                yield batch.select(wanted)
                progress(raw.tell() - told)
                told = raw.tell()

    def _check_columns(self, present: list[str]) -> None:
        for name in self._names.values():
            if present.count(name) != 1:
                raise ValueError(f"{self._file}: expected one column {name!r}, got the columns {present}")

    def _check_quotes(self, batch: Any) -> None:
        """Looks closer where a value has several lines: Arrow reads on from an open quote to the next or the end."""
        from pyarrow import compute

        texts = (column for column in batch.columns if is_text(column.type))
        if not self._checked and any(compute.any(compute.match_substring(text, "\n")).as_py() for text in texts):
            check_quotes(self._file)
            self._checked = True

    def _chunk(self, batch: Any, row: int) -> Chunk:
        pa, _ = arrow()
        column = {}
        for name, own in self._names.items():
            try:
                column[name] = plain(batch.column(own))
            except pa.ArrowException as error:
                raise ValueError(f"{self._file}: column {own!r}, {batch.column(own).type}: {error}") from error
            if column[name].null_count and name != "title":
                empty = row + column[name].is_null().to_numpy(zero_copy_only=False).argmax()
                raise ValueError(f"{self._file}: row {empty} has no {own!r}")
        items = self._items.encode(self._keys(column["item"], "item", row))
        self._note_titles(items, column["title"])
        users = self._users.encode(self._keys(column["user"], "user", row))
        ratings = self._ratings(column["rating"], row) if "rating" in column else None
        return Chunk(users, items, ratings, self._times(column["time"], row))

    def _keys(self, column: Any, name: str, row: int) -> Any:
        pa, _ = arrow()
        if is_text(column.type) or pa.types.is_integer(column.type):
            return column
        if not is_number(column.type):
            raise self._wrong(name, column, "integers or text")
        return cast(column, pa.int64(), self._bad(name, column, row, "a whole number of 64 bits"))

    def _ratings(self, column: Any, row: int) -> NDArray[np.float32]:
        pa, _ = arrow()
        if not (is_number(column.type) or is_text(column.type)):
            raise self._wrong("rating", column, "numbers")
        bad = self._bad("rating", column, row, "a number")
        ratings = cast(column, pa.float32(), bad, safe=False).to_numpy(zero_copy_only=False)
        if not np.isfinite(ratings).all():
            place = np.isfinite(ratings).argmin()
            raise ValueError(
                f"{self._file}: row {row + place} has a rating that is not finite, {self._names['rating']!r} is "
                f"{column[place].as_py()!r}"
            )
        return ratings

    def _times(self, column: Any, row: int) -> NDArray[np.int64]:
        pa, _ = arrow()
        if pa.types.is_timestamp(column.type) or pa.types.is_date64(column.type):
            return column.cast(pa.int64()).to_numpy(zero_copy_only=False)
        if pa.types.is_date32(column.type):
            return column.cast(pa.int32()).to_numpy(zero_copy_only=False).astype(np.int64)
        if is_number(column.type):
            bad = self._bad("time", column, row, "a whole number of 64 bits")
            return cast(column, pa.int64(), bad).to_numpy(zero_copy_only=False)
        if not is_text(column.type):
            raise self._wrong("time", column, "whole numbers, dates, timestamps or text in ISO 8601")
        if self._clock is None and len(column):
            self._clock = self._kind_of_time(column, row)
        return self._clock(column, row).to_numpy(zero_copy_only=False) if self._clock else np.zeros(0, np.int64)

    def _kind_of_time(self, column: Any, row: int) -> Callable[[Any, int], Any]:
        """What reads times that are text, by the first of them."""
        pa, _ = arrow()

        def numbers(column: Any, row: int) -> Any:
            return cast(column, pa.int64(), self._bad("time", column, row, "a whole number, as in the first row"))

        def fractions(column: Any, row: int) -> Any:
            bad = self._bad("time", column, row, "a whole number, as in the first row")
            return cast(cast(column, pa.float64(), bad), pa.int64(), bad)

        def moments(zone: str | None) -> Callable[[Any, int], Any]:
            expected = f"ISO 8601 {'with' if zone else 'without'} a zone, as in the first row"

            def read(column: Any, row: int) -> Any:
                try:
                    return column.cast(pa.timestamp("us", zone)).cast(pa.int64())
                except pa.ArrowInvalid:  # more than six digits of a second, or no such date
                    finer = cast(column, pa.timestamp("ns", zone), self._bad("time", column, row, expected))
                    return finer.cast(pa.timestamp("us", zone), safe=False).cast(pa.int64())

            return read

        for attempt in (numbers, fractions, moments(None), moments("UTC")):
            try:
                attempt(column.slice(0, 1), row)
                return attempt
            except ValueError:
                continue
        raise self._bad("time", column, row, "a whole number or ISO 8601, as 2020-01-31 or 2020-01-31T12:00:00Z")(0)

    def _note_titles(self, items: NDArray[np.int32], column: Any) -> None:
        """Remembers the first title of each item that shows something."""
        pa, _ = arrow()
        if pa.types.is_null(column.type):
            column = column.cast(pa.large_string())
        if not is_text(column.type):
            raise self._wrong("title", column, "text")
        self._titles.extend([""] * (len(self._items) - len(self._titles)))
        from pyarrow import compute

        told = np.flatnonzero(compute.match_substring_regex(column.fill_null(""), _SEEN).to_numpy(zero_copy_only=False))
        found, first = np.unique(items[told], return_index=True)
        new = [place for place, item in enumerate(found) if not self._titles[item]]
        texts = column.take(pa.array(told[first[new]], pa.int64())).to_pylist()
        for place, text in zip(new, texts, strict=True):
            self._titles[found[place]] = text.strip()

    def _wrong(self, name: str, column: Any, expected: str) -> ValueError:
        return ValueError(f"{self._file}: column {self._names[name]!r} is {column.type}, expected {expected}")

    def _bad(self, name: str, column: Any, row: int, expected: str) -> Callable[[int], ValueError]:
        """The error for the value at a place of the column, whose first is in this row."""

        def error(place: int) -> ValueError:
            found = column[place].as_py()
            shown = repr(found if isinstance(found, str) else str(found))[:_SHOWN]
            return ValueError(f"{self._file}: row {row + place} has {self._names[name]!r} {shown}, expected {expected}")

        return error


def check_quotes(file: Path) -> None:
    """Refuses a CSV file with a quote that is not closed, or closed inside of a value.

    Raises:
        ValueError: names the line.
    """
    packed = file.suffix == ".gz"
    limit = csv.field_size_limit(1 << 30)
    try:
        with (
            gzip.open(file, "rt", encoding="utf-8", newline="")
            if packed
            else file.open(encoding="utf-8", newline="") as lines
        ):
            rows = csv.reader(lines, strict=True)
            begin = 1
            for _ in rows:
                begin = rows.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{file}: the row from line {begin} on has unbalanced quotes ({error})") from error
    finally:
        csv.field_size_limit(limit)
