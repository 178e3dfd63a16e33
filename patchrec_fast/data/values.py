# SPDX-License-Identifier: Apache-2.0
"""Arrow columns by what they hold: text is text in whichever of Arrow's types it comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .arrow import arrow

# by name, because older versions of pyarrow lack the views
_TEXT = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view", "fixed_size_binary")


def plain(column: Any) -> Any:
    """An array of large_string, integers, floats, decimal256 or what else it holds, without any encoding.

    Raises:
        pyarrow.ArrowInvalid: bytes that are not UTF-8.
    """
    pa, _ = arrow()
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ExtensionArray):
        return plain(column.storage)
    if pa.types.is_dictionary(column.type):
        return plain(column.dictionary).take(column.indices)
    if pa.types.is_run_end_encoded(column.type):
        places = np.arange(column.offset, column.offset + len(column))
        return plain(column.values).take(pa.array(np.searchsorted(column.run_ends.to_numpy(), places, "right")))
    if is_text(column.type):
        return column.cast(pa.large_string())
    if pa.types.is_decimal(column.type):
        return column.cast(pa.decimal256(76, column.type.scale))
    return column


def is_text(kind: Any) -> bool:
    return str(kind).partition("[")[0] in _TEXT


def is_number(kind: Any) -> bool:
    pa, _ = arrow()
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def cast(column: Any, kind: Any, wrong: Callable[[int], Exception], safe: bool = True) -> Any:
    """`column.cast(kind)`, where the first value that cannot be cast raises `wrong(its place)`."""
    pa, _ = arrow()

    def attempt(size: int) -> Any:
        try:
            return column.slice(0, size).cast(kind, safe=safe)
        except pa.ArrowInvalid:
            return None

    if (found := attempt(len(column))) is not None:
        return found
    good, bad = 0, len(column)  # values from the beginning that can be cast together, and that cannot
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if attempt(middle) is not None else (good, middle)
    raise wrong(good)


def lists(column: Any) -> Any:
    """An array of large_list; None where it holds no lists."""
    pa, _ = arrow()
    if isinstance(column, pa.ExtensionArray):
        return lists(column.storage)
    name = str(column.type).partition("<")[0]
    if name in ("list", "large_list", "fixed_size_list"):
        return column.cast(pa.large_list(column.type.value_type))
    if name in ("list_view", "large_list_view"):  # Arrow 26 casts views wrongly
        return pa.array(column.to_pylist(), pa.large_list(column.type.value_type))
    return None
