# SPDX-License-Identifier: Apache-2.0
"""`datetime.strptime` over a column at a time: a format becomes a pattern, its fields become numbers.

Names of months and days are English whatever the locale is.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .arrow import arrow

_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_FIELDS = {
    "Y": "[0-9]{4}",
    "y": "[0-9]{2}",
    "m": "1[0-2]|0?[1-9]",
    "b": "|".join(month[:3] for month in _MONTHS),
    "B": "|".join(_MONTHS),
    "d": "3[01]|[12][0-9]|0?[1-9]| [1-9]",
    "H": "2[0-3]|[01][0-9]|[0-9]",
    "I": "1[0-2]|0?[1-9]",
    "p": "AM|PM",
    "M": "[0-5][0-9]|[0-9]",
    "S": "[0-5][0-9]|[0-9]",
    "f": "[0-9]{1,6}",
    "z": "Z|[+-](?:[01][0-9]|2[0-3]):?[0-5][0-9]",
}
_UNREAD = {"a": "|".join(day[:3] for day in _DAYS), "A": "|".join(_DAYS)}
_DIRECTIVE = re.compile(r"%(.?)|(\s+)|([^%\s]+)", re.DOTALL)
_EXAMPLE = datetime(2020, 1, 31, 17, 5, 9, tzinfo=UTC)


class Format(NamedTuple):
    """A format that has been understood."""

    text: str
    pattern: str  # of RE2, with a named group a field
    fields: tuple[str, ...]

    def example(self) -> str:
        """A time as it is written by the format."""
        return _EXAMPLE.strftime(self.text)


def parse_format(text: str) -> Format:
    """Understands a format of `strptime`.

    Raises:
        ValueError: a directive that is unknown or there twice, or no year.
    """
    pattern, fields = [], []
    for directive, space, other in _DIRECTIVE.findall(text):
        if space or other:
            pattern.append(r"\s+" if space else re.escape(other))
        elif directive == "%":
            pattern.append("%")
        elif directive in _UNREAD:
            pattern.append(f"(?:{_UNREAD[directive]})")
        elif directive in _FIELDS and directive not in fields:
            pattern.append(f"(?P<{directive}>{_FIELDS[directive]})")
            fields.append(directive)
        else:
            known = " ".join(f"%{name}" for name in (*_FIELDS, *_UNREAD))
            wrong = "twice" if directive in fields else "unknown"
            raise ValueError(f"--time-format {text!r}: %{directive} is {wrong}, expected each once of {known}")
    if not {"Y", "y"} & set(fields):
        raise ValueError(f"--time-format {text!r}: expected a year, as %Y in '%d.%m.%Y %H:%M'")
    return Format(text, rf"(?i)\A(?:{''.join(pattern)})\z", tuple(fields))


def read(column: Any, form: Format) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Microseconds since 1970 of an Arrow column of text; times with a zone (%z) are UTC, others as they stand.

    Returns:
        (n,) the times, and (n,) whether each is one: it fits the format and is in the calendar.
    """
    pa, _ = arrow()
    from pyarrow import compute

    found = compute.extract_regex(compute.utf8_trim_whitespace(column), form.pattern)
    good = found.is_valid().to_numpy(zero_copy_only=False)
    found = found.filter(pa.array(good))
    texts = {name: found.field(name) for name in form.fields}

    def number(name: str, default: int = 0) -> NDArray[np.int64]:
        if name not in texts:
            return np.full(len(found), default, np.int64)
        return compute.utf8_ltrim_whitespace(texts[name]).cast(pa.int64()).to_numpy(zero_copy_only=False)

    def month() -> NDArray[np.int64]:
        for name, names in (("b", [month[:3] for month in _MONTHS]), ("B", _MONTHS)):
            if name in texts:
                values = pa.array([value.lower() for value in names], texts[name].type)
                index = compute.index_in(compute.utf8_lower(texts[name]), values)
                return index.to_numpy(zero_copy_only=False).astype(np.int64) + 1
        return number("m", 1)

    year = number("Y") if "Y" in texts else (number("y") + 31) % 100 + 1969  # 69 to 99 are of the last century
    months = ((year - 1970) * 12 + month() - 1).astype("M8[M]")
    first, day = months.astype("M8[D]").astype(np.int64), number("d", 1)
    in_month = day <= (months + 1).astype("M8[D]").astype(np.int64) - first
    hour = number("H")
    if "I" in texts:
        hour = number("I") % 12
        if "p" in texts:
            hour += 12 * compute.equal(compute.utf8_lower(texts["p"]), "pm").to_numpy(zero_copy_only=False)
    seconds = (((first + day - 1) * 24 + hour) * 60 + number("M") - _zone(texts)) * 60 + number("S")
    micros = seconds * 1_000_000
    if "f" in texts:
        micros += compute.utf8_rpad(texts["f"], 6, "0").cast(pa.int64()).to_numpy(zero_copy_only=False)
    times = np.zeros(len(good), np.int64)
    times[good] = micros
    good[good] = in_month
    return times, good


def _zone(texts: dict[str, Any]) -> NDArray[np.int64] | int:
    """Minutes east of Greenwich."""
    pa, _ = arrow()
    from pyarrow import compute

    if "z" not in texts:
        return 0
    zone = compute.replace_substring(texts["z"], ":", "")
    zone = compute.if_else(compute.equal(compute.utf8_lower(zone), "z"), "+0000", zone)
    digits = compute.utf8_slice_codeunits(zone, 1).cast(pa.int64()).to_numpy(zero_copy_only=False)
    west = compute.starts_with(zone, "-").to_numpy(zero_copy_only=False)
    return np.where(west, -1, 1) * (digits // 100 * 60 + digits % 100)
