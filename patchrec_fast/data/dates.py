# SPDX-License-Identifier: Apache-2.0
"""Goodreads's dates as numbers, a column at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrow import arrow

_MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec"
EXAMPLE = "Fri Aug 25 13:55:02 -0700 2017"
_LENGTH = len(EXAMPLE)


def seconds(column: Any) -> NDArray[np.int64] | None:
    """Seconds since 1970 of an Arrow column of dates like "Fri Aug 25 13:55:02 -0700 2017".

    Characters are taken from fixed places, all rows at once: about 30 times as fast as `datetime.strptime`. The name of
    the day and the length of the month are not checked.

    Returns:
        (n,), or None where a row is no such date.
    """
    pa, _ = arrow()
    if not len(column):  # Arrow gives no buffers
        return np.zeros(0, np.int64)
    texts = column.combine_chunks().cast(pa.binary())
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]
    if (np.diff(offsets) != _LENGTH).any():
        return None
    rows = np.frombuffer(texts.buffers()[2], np.uint8)[offsets[0] : offsets[-1]].reshape(-1, _LENGTH)
    text = np.ascontiguousarray(rows.T)  # (30, n)
    month = _month(text)
    fields = [_number(text, *place) for place in ((8, 10), (11, 13), (14, 16), (17, 19), (21, 23), (23, 25), (26, 30))]
    day, hour, minute, second, zone_hour, zone_minute, year = fields
    east, west = text[20] == ord("+"), text[20] == ord("-")
    good = (month >= 0) & (east | west) & (np.stack(fields) >= 0).all(axis=0)
    good &= (day >= 1) & (day <= 31) & (hour <= 23) & (minute <= 59) & (second <= 60)
    if not good.all():
        return None
    months = ((year - 1970) * 12 + month).astype("M8[M]")
    days = months.astype("M8[D]").astype(np.int64) + day - 1
    zone = np.where(west, -1, 1) * (60 * zone_hour + zone_minute)
    return ((days * 24 + hour) * 60 + minute - zone) * 60 + second


def _number(text: NDArray[np.uint8], begin: int, end: int) -> NDArray[np.int64]:
    """(n,) the number written at these places, below 0 where a character is no digit."""
    number = np.zeros(text.shape[1], np.int64)
    for digit in text[begin:end].astype(np.int64) - ord("0"):
        number = np.where((digit >= 0) & (digit <= 9), number * 10 + digit, -(10**9))
    return number


def _month(text: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(n,) 0 for Jan to 11 for Dec, -1 for anything else."""
    month = np.full(text.shape[1], -1, np.int64)
    for number, name in enumerate(_MONTHS.split()):
        first, second, third = name.encode()
        month[(text[4] == first) & (text[5] == second) & (text[6] == third)] = number
    return month
