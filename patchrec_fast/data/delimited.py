# SPDX-License-Identifier: Apache-2.0
"""Text tables with a separator (CSV, TSV and their kin), parsed by Arrow in blocks.

Arrow says little about what it refuses, and reads on from a quote that is not closed to the next one without a word.
So where it refuses a file, where a value is wrong, and where a file has not one line a row, the rows are walked with
Python's `csv`, which knows where each begins; only then.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .arrow import arrow
from .blocks import BLOCK
from .faults import check_columns, shown
from .interactions import Progress
from .rawfile import Bytes, no_text, opened, sample

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
_LINES = 20  # that a separator is seen in
_LARGEST_VALUE = 1 << 30
_ENTITY = re.compile(r"&#?\w+;")


def separator(given: str) -> str:
    """A separator as it is given on a command line.

    Raises:
        ValueError: not one character.
    """
    names = {name: sep for sep, name in SEPARATORS.items()}
    sep = (names | {"\\t": "\t"}).get(given, given)
    if len(sep) != 1 or not sep.isascii() or sep in '"\r\n\0':
        raise ValueError(f"--sep: expected one character, or one of {', '.join(names)}, got {given!r}")
    return sep


class Delimited:
    """One such file.

    Args:
        file: plain or `.gz`.
        wanted: the option that names a column -> the column.
        sep: the separator; None sees it from the first lines.
        encoding: of the text; None for UTF-8.
    """

    def __init__(self, file: Path, wanted: dict[str, str], sep: str | None, encoding: str | None) -> None:
        self._file, self._wanted, self._sep, self._encoding = file, wanted, sep, encoding
        self._columns: list[str] = []

    def batches(self, progress: Progress) -> Iterator[tuple[int, Any]]:
        """The number of the first row (the header is row 1), and rows with the wanted columns as text.

        Raises:
            ValueError: what is wrong with the file, with the row.
        """
        pa, _ = arrow()
        self._look()
        row = 2
        try:
            with Bytes(self._file, progress) as raw:
                for batch in self._parse(raw):
                    yield row, batch
                    row += batch.num_rows
                lines = raw.lines + (not raw.ended)
        except (pa.ArrowException, OSError, UnicodeError, MemoryError, KeyError) as error:
            self._walk_to(None)
            raise ValueError(f"{self._file}: not a table that can be read ({str(error).splitlines()[0]})") from error
        if row == 2:
            raise ValueError(f"{self._file}: row 1 is the header and no row follows it")
        if lines != row - 1:
            self._walk_to(None)  # a quote that is not closed may have swallowed rows

    def where(self, row: int) -> str:
        """The place of a row, in words.

        Raises:
            ValueError: something is wrong before that row or in it, and explains what came of it.
        """
        return _place(row, self._walk_to(row))

    def _parse(self, raw: Bytes) -> Iterator[Any]:
        pa, _ = arrow()
        from pyarrow import csv as arrow_csv

        wanted = list(dict.fromkeys(self._wanted.values()))
        stream = pa.PythonFile(raw, "r")
        if self._encoding is not None:
            stream = pa.transcoding_input_stream(stream, self._encoding, "utf-8")
        yield from arrow_csv.open_csv(
            stream,
            arrow_csv.ReadOptions(block_size=BLOCK),
            arrow_csv.ParseOptions(delimiter=self._sep, newlines_in_values=True),
            arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(wanted, pa.large_string()),
                include_columns=wanted,
                null_values=[""],
                strings_can_be_null=True,
            ),
        )

    def _look(self) -> None:
        """Sees the separator and the columns.

        Raises:
            ValueError: no text, or columns that are missing.
        """
        text, given = sample(self._file, self._encoding), self._sep
        self._sep = given or _seen(text, set(self._wanted.values()), "\t" if ".tsv" in self._file.name.lower() else ",")
        for _, header in self._rows():
            self._columns = header
            break
        self._walk_to(1)
        if given and len(self._columns) == 1 and (other := _seen(text, set(self._wanted.values()), given)) != given:
            raise ValueError(
                f"{self._file}: row 1, the header: found {shown(self._columns[0])}, expected columns "
                f"separated by --sep {given!r}; --sep {SEPARATORS[other]} looks better"
            )
        check_columns(self._file, self._wanted, self._columns, f", of row 1 separated by {self._sep!r}")

    def _walk_to(self, wanted: int | None) -> int | None:
        """The line that a row begins in; walks all rows before it, or all there are.

        Raises:
            ValueError: a row that is not text, is not closed, or has other columns than the header.
        """
        read = {*self._wanted.values()}
        for row, (line, fields) in enumerate(self._rows(), 1):
            for name, field in zip(self._columns, fields, strict=False):
                if not field.isascii() and (row == 1 or name in read):
                    wrong = no_text(self._file, _place(row, line), name, field, self._encoding)
                    if wrong is not None:
                        raise wrong
            if len(fields) != len(self._columns):
                raise self._ragged(row, line, fields)
            if row == wanted:
                return line
        return None

    def _ragged(self, row: int, line: int, fields: list[str]) -> ValueError:
        text = (self._sep or ",").join(fields)
        entity = ", as one with the HTML entity " + repr(found[0]) if (found := _ENTITY.search(text)) else ""
        return ValueError(
            f"{self._file}: {_place(row, line)}: found {_columns(len(fields))} separated by {self._sep!r} in "
            f"{shown(text)}, expected the header's {len(self._columns)}; a value that holds a {self._sep!r}"
            f"{entity if self._sep == ';' else ''} must be in double quotes"
        )

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """The line that each row begins in, and its fields; empty lines are no rows."""
        limit = csv.field_size_limit(_LARGEST_VALUE)
        begin, row = 1, 1
        try:
            with opened(self._file, self._encoding) as text:
                rows = csv.reader(text, strict=True, delimiter=self._sep or ",")
                for fields in rows:
                    if fields:
                        yield begin, fields
                        row += 1
                    begin = rows.line_num + 1
        except csv.Error as error:
            open_end = "end of data" in str(error)
            found = (
                "a double quote that is not closed" if open_end else "text after the double quote that closes a value"
            )
            raise ValueError(
                f"{self._file}: {_place(row, begin)}: unbalanced quotes, found {found}, "
                'expected one at both ends of a value, and "" for one inside'
            ) from error
        except UnicodeDecodeError as error:
            place = f"{_place(row, begin)} or one after it"
            raise ValueError(f"{self._file}: {place} is not text of --encoding {self._encoding}") from error
        finally:
            csv.field_size_limit(limit)


def _place(row: int, line: int | None) -> str:
    return f"row {row}" if line in (row, None) else f"row {row} (line {line})"


def _columns(count: int) -> str:
    return f"{count} column{'s' * (count != 1)}"


def _seen(text: str, wanted: set[str], usual: str) -> str:
    """The separator that gives the header most of the wanted columns; of several, most columns in all lines alike."""

    def worth(sep: str) -> tuple[int, int, bool]:
        try:
            rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=sep) if row][:_LINES]
        except csv.Error:
            return 0, 0, sep == usual
        header = rows[0] if rows else []
        alike = all(len(row) == len(header) for row in rows)
        return len(wanted & set(header)), len(header) * alike, sep == usual

    return max(SEPARATORS, key=worth)
