# SPDX-License-Identifier: Apache-2.0
"""JSON lines as a table: one object a line, whose keys are columns."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .arrow import arrow
from .faults import bad_value, check_columns, empty_value, shown
from .interactions import Progress
from .rawfile import no_text, opened, sample

_ROWS = 1 << 14  # of a batch
_LONGEST = 1 << 26  # characters of a line
_SURROGATE = re.compile("[\ud800-\udfff]")


class JsonLines:
    """One such file; numbers come as the text that they are written with, as in CSV.

    Args:
        file: plain or `.gz`.
        wanted: the option that names a key -> the key.
        encoding: of the text; None for UTF-8.
    """

    def __init__(self, file: Path, wanted: dict[str, str], encoding: str | None) -> None:
        self._file, self._wanted, self._encoding = file, wanted, encoding
        titles = ("--title", "--titles-title")
        self._titles = set(wanted.values()) - {name for option, name in wanted.items() if option not in titles}
        self._empty: list[int] = []  # numbers of the empty lines

    def batches(self, progress: Progress) -> Iterator[tuple[int, Any]]:
        """The number of the first row, without empty lines, and rows with the wanted columns as text.

        Raises:
            ValueError: a line that is no such object, with its number.
        """
        sample(self._file, self._encoding)
        first = 1
        lines, rows = [], []
        for line, text in self._lines(progress):
            lines.append(line)
            rows.append(self._object(line, text))
            if len(rows) == 1 == first:
                needed = {option: name for option, name in self._wanted.items() if name not in self._titles}
                check_columns(self._file, needed, list(rows[0]), f", the keys of row {line}")
            if len(rows) == _ROWS:
                yield first, self._batch(lines, rows)
                first, lines, rows = first + _ROWS, [], []
        if rows:
            yield first, self._batch(lines, rows)

    def where(self, row: int) -> str:
        """The place of a row, in words; rows are numbered as lines."""
        for empty in self._empty:
            row += empty <= row
        return f"row {row}"

    def _batch(self, lines: list[int], rows: list[dict[str, Any]]) -> Any:
        pa, _ = arrow()
        columns = {}
        for name in dict.fromkeys(self._wanted.values()):
            values = [fields.get(name) for fields in rows]
            try:
                columns[name] = pa.array(values, pa.large_string())
                good = name in self._titles or not (columns[name].null_count or "" in values)
            except (pa.ArrowException, UnicodeEncodeError):
                good = False
            if not good:  # one at a time, which says what is wrong where
                values = [self._text(line, name, fields) for line, fields in zip(lines, rows, strict=True)]
                columns[name] = pa.array(values, pa.large_string())
            if columns[name].null_count == len(rows):  # a title may be missing in a row; in all, the key is another
                check_columns(self._file, self._wanted, list(rows[0]), f", the keys of row {lines[0]}")
        return pa.record_batch(columns)

    def _lines(self, progress: Progress) -> Iterator[tuple[int, str]]:
        self._empty = []
        with opened(self._file, self._encoding, progress) as text:
            number = 0
            while line := self._read(text, number + 1):
                number += 1
                if line.strip():
                    yield number, line
                else:
                    self._empty.append(number)

    def _read(self, text: Any, number: int) -> str:
        try:
            line = text.readline(_LONGEST)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self._file}: row {number} or one after it is not text of --encoding {self._encoding}"
            ) from error
        if len(line) == _LONGEST:
            raise ValueError(f"{self._file}: row {number} is longer than 64 MiB, expected one JSON object a line")
        return line

    def _object(self, line: int, text: str) -> dict[str, Any]:
        try:
            fields = _DECODER.decode(text)
        except (ValueError, RecursionError) as error:
            why = (
                f"no JSON from character {error.pos + 1} on" if isinstance(error, json.JSONDecodeError) else str(error)
            )
            raise ValueError(
                f"{self._file}: row {line}: found {shown(text.strip())}, expected one JSON object ({why})"
            ) from error
        if not isinstance(fields, dict):
            also = "; a file that is one JSON array is to be written with an object a line" if line == 1 else ""
            raise ValueError(f"{self._file}: row {line}: found {shown(text.strip())}, expected a JSON object{also}")
        if not text.isascii() and no_text(self._file, "", "", text, self._encoding) is not None:
            for name in self._wanted.values():
                wrong = no_text(self._file, f"row {line}", name, str(fields.get(name)), self._encoding)
                if wrong is not None:
                    raise wrong
        return fields

    def _text(self, line: int, name: str, fields: dict[str, Any]) -> str | None:
        value = fields.get(name)
        if value is None or value == "":
            if name in self._titles:
                return None
            if name not in fields:
                keys = ", ".join(map(repr, fields))
                raise ValueError(
                    f"{self._file}: row {line}, column {name!r}: no such key among {keys}, expected it in every row"
                )
            raise empty_value(self._file, f"row {line}", repr(name))
        if isinstance(value, str):
            if value.isascii() or not _SURROGATE.search(value):
                return value
            if name in self._titles:
                return _SURROGATE.sub("\0", value)  # goes, and is counted, as a control character does
            raise bad_value(self._file, f"row {line}", repr(name), json.dumps(value), "text without lone surrogates")
        raise bad_value(self._file, f"row {line}", repr(name), json.dumps(value), "text or a number")


def _nothing(name: str) -> None:
    """NaN and the infinities, which are no JSON: as if there was no value."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} comes twice")
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_int=str, parse_float=str, parse_constant=_nothing)
