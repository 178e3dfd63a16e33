# SPDX-License-Identifier: Apache-2.0
"""A batch of a table's rows by what their columns are, whichever reader it comes from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .arrow import arrow
from .faults import bad_value, empty_value
from .values import cast, is_text, plain


class Batch:
    """Rows of a table, and the errors for what is in them.

    Args:
        file: of the table.
        names: what a column is -> its name.
        row: the number of the first row.
        batch: of Arrow.
        where: names the place of a row.
    """

    def __init__(self, file: Path, names: dict[str, str], row: int, batch: Any, where: Callable[[int], str]) -> None:
        self._file, self._names, self._row, self._batch, self._where = file, names, row, batch, where

    def column(self, name: str) -> Any:
        """What `values.plain` makes of a column."""
        pa, _ = arrow()
        column = self._batch.column(self._names[name])
        try:
            return plain(column)
        except pa.ArrowInvalid:
            if is_text(column.type):
                cast(column, pa.large_string(), self.bad(name, "text in UTF-8"))
            raise self.wrong_type(name, "text in UTF-8") from None

    def full(self, name: str) -> Any:
        """The same, without empty values."""
        column = self.column(name)
        if column.null_count:
            place = int(column.is_null().to_numpy(zero_copy_only=False).argmax())
            raise empty_value(self._file, self._where(self._row + place), self._column(name))
        return column

    def titles(self, item: str) -> Any:
        """The titles as text; those of a column that is the items' too may be numbers."""
        pa, _ = arrow()
        column = self.column("title")
        same = self._names["title"] == self._names[item] and pa.types.is_integer(column.type)
        if not (is_text(column.type) or pa.types.is_null(column.type) or same):
            raise self.wrong_type("title", "text")
        return column.cast(pa.large_string())

    def bad(self, name: str, expected: str) -> Callable[[int], ValueError]:
        """The error for the value at a place."""

        def error(place: int) -> ValueError:
            found = self._batch.column(self._names[name])[place].as_py()
            return bad_value(self._file, self._where(self._row + place), self._column(name), found, expected)

        return error

    def wrong_type(self, name: str, expected: str) -> ValueError:
        """The error for a column that cannot hold what it should."""
        kind = self._batch.column(self._names[name]).type
        return ValueError(f"{self._file}: column {self._column(name)} is {kind}, expected {expected}")

    def _column(self, name: str) -> str:
        own = self._names[name]
        return repr(own) if own == name else f"{own!r} (--{name})"
