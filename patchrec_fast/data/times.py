# SPDX-License-Identifier: Apache-2.0
"""Times of a table as numbers: whole or with a fraction, dates, timestamps, ISO 8601, or text of a given format."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import strptime
from .arrow import arrow
from .values import cast, is_number, is_text

Wrong = Callable[[int, str], ValueError]  # the error for the value at a place, where this was expected
Numbers = NDArray[np.int64] | NDArray[np.float64]

_ISO = "ISO 8601 (2020-01-31 or 2020-01-31T17:05:09)"
_DATE = re.compile(r"(\d{1,2})([./-])(\d{1,2})\2(\d{4}|\d{2})(.*)|(\d{4})([./])(\d{1,2})\7(\d{1,2})(.*)", re.DOTALL)
_LIKE_ISO = re.compile(r"\s*\d{4}-\d\d-\d\d")
_SOME_TIME = re.compile(r"\d.*\d")
_CLOCK = (
    (re.compile(r""), ""),
    (re.compile(r"[ T]\d{1,2}:\d\d"), "%H:%M"),
    (re.compile(r"[ T]\d{1,2}:\d\d:\d\d"), "%H:%M:%S"),
    (re.compile(r"[ T]\d{1,2}:\d\d:\d\d\.\d{1,6}"), "%H:%M:%S.%f"),
    (re.compile(r" \d{1,2}:\d\d [AaPp][Mm]"), "%I:%M %p"),
    (re.compile(r" \d{1,2}:\d\d:\d\d [AaPp][Mm]"), "%I:%M:%S %p"),
)


class Times:
    """Reads the times of one table, a batch after another; the first row says what kind of text they are.

    Args:
        form: as of `datetime.strptime`, for times that are text; None for those of a kind that needs none.

    Raises:
        ValueError: no such format.
    """

    def __init__(self, form: str | None) -> None:
        self._form = None if form is None else strptime.parse_format(form)
        self._of_text: Callable[[Any, Wrong], Numbers] | None = None

    def read(self, column: Any, wrong: Wrong) -> Numbers:
        """(n,) int64, or float64 where a number has a fraction; of one unit over all batches, larger is later.

        Args:
            column: an Arrow array of `values.plain`, without nulls.
            wrong: makes the error for a value.

        Raises:
            ValueError: of `wrong`.
            TypeError: a column that can hold no times; the message is what was expected.
        """
        pa, _ = arrow()
        kind = column.type
        if self._form is not None:
            if not (is_text(kind) or pa.types.is_integer(kind)):
                raise TypeError("text, for a --time-format")
            return self._formatted(column.cast(pa.large_string()), wrong)
        if pa.types.is_timestamp(kind) or pa.types.is_date64(kind):
            return column.cast(pa.int64()).to_numpy(zero_copy_only=False)
        if pa.types.is_date32(kind):
            return column.cast(pa.int32()).to_numpy(zero_copy_only=False).astype(np.int64)
        if is_number(kind):
            return _numbers(column, wrong, "a finite number")
        if not is_text(kind):
            raise TypeError("numbers, dates, timestamps or text")
        if self._of_text is None and len(column):
            self._of_text = _kind(column, wrong)
        return self._of_text(column, wrong) if self._of_text else np.zeros(0, np.int64)

    def _formatted(self, column: Any, wrong: Wrong) -> NDArray[np.int64]:
        assert self._form is not None
        times, good = strptime.read(column, self._form)
        if not good.all():
            place = int(good.argmin())
            expected = f"a time of --time-format {self._form.text!r}, as {self._form.example()!r}"
            raise wrong(place, expected + _hint(column[place].as_py(), self._form.text))
        return times


def _kind(column: Any, wrong: Wrong) -> Callable[[Any, Wrong], Numbers]:
    """What reads times that are text, by the first of them."""

    def numbers(column: Any, wrong: Wrong) -> Numbers:
        return _numbers(column, wrong, "a number, as in the first row")

    for attempt in (numbers, _moments(None), _moments("UTC")):
        try:
            attempt(column.slice(0, 1), wrong)
            return attempt
        except ValueError:
            continue
    raise wrong(0, f"a number or {_ISO}{_hint(column[0].as_py())}")


def _numbers(column: Any, wrong: Wrong, expected: str) -> Numbers:
    pa, _ = arrow()
    try:
        return column.cast(pa.int64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        pass
    numbers = cast(
        column, pa.float64(), lambda place: wrong(place, expected + _hint(column[place].as_py())), safe=False
    )
    found = numbers.to_numpy(zero_copy_only=False)
    if not np.isfinite(found).all():
        raise wrong(int(np.isfinite(found).argmin()), "a finite number")
    return found


def _moments(zone: str | None) -> Callable[[Any, Wrong], Numbers]:
    expected = f"ISO 8601 {'with' if zone else 'without'} a zone, as in the first row"

    def read(column: Any, wrong: Wrong) -> Numbers:
        pa, _ = arrow()
        try:
            return column.cast(pa.timestamp("us", zone)).cast(pa.int64()).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid:  # more than six digits of a second, or no such date
            bad = lambda place: wrong(place, expected + _hint(column[place].as_py()))  # noqa: E731
            finer = cast(column, pa.timestamp("ns", zone), bad)
            return finer.cast(pa.timestamp("us", zone), safe=False).cast(pa.int64()).to_numpy(zero_copy_only=False)

    return read


def _hint(text: object, given: str | None = None) -> str:
    """The option that would read a date like this one, where that can be guessed; `given` does not."""
    if not isinstance(text, str) or not _SOME_TIME.search(text):
        return ""
    if (given is None and _LIKE_ISO.match(text)) or given in (forms := _forms(text.strip())):
        return "; there is no such day or hour"
    if not forms:
        return "; --time-format says how other times are written" if given is None else ""
    if len(forms) == 1:
        return f"; --time-format {forms[0]!r} reads it"
    return f"; --time-format {forms[0]!r} reads it if the day is first, {forms[1]!r} if the month is"


def _forms(text: str) -> list[str]:
    """Formats that a date may be written in."""
    if (date := _DATE.fullmatch(text)) is None:
        return []
    first, mark, second, year, late, year_first, other_mark, *_, after = date.groups()
    rest = late or after or ""
    clock = next((form for pattern, form in _CLOCK if pattern.fullmatch(rest)), None)
    if clock is None:
        return []
    end = rest[:1] + clock
    if year_first:
        return [other_mark.join(("%Y", "%m", "%d")) + end]
    orders = {"day": ("%d", "%m"), "month": ("%m", "%d")}
    if int(second) > 12:
        del orders["day"]
    elif int(first) > 12:
        del orders["month"]
    return [mark.join((*order, "%Y" if len(year) == 4 else "%y")) + end for order in orders.values()]
