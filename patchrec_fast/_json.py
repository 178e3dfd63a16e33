# SPDX-License-Identifier: Apache-2.0
"""JSON files of ours: written as valid JSON, read with their shape checked, so that every error names the file.

A shape is a type, a tuple of types, `[shape]` for a list of such entries, `{str: shape}` for an object with any keys,
and `{"key": shape, ...}` for one with at least these. `float` takes whole numbers too, neither takes true or false,
and whole numbers fit in 64 bits.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

Shape = Any
_HUGE = 2**63


def dumps(value: Any, indent: int | None = None) -> str:
    """One value and a line feed. Numbers that are not finite, which JSON lacks, become null."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False) + "\n"


def load(path: str | os.PathLike[str], shape: Shape, what: str) -> Any:
    """The content of a file.

    Args:
        path: the file.
        shape: what it must hold.
        what: what the file is, for the message.

    Raises:
        OSError: no such file.
        ValueError: not JSON, or of another shape; the message names the file.
    """
    try:
        content = loads(Path(path).read_bytes())
        check(content, shape)
    except ValueError as error:
        raise ValueError(f"{path}: not {what}, or damaged ({error})") from error
    return content


def loads(text: str | bytes) -> Any:
    """What JSON says.

    Raises:
        ValueError: not JSON; NaN and infinities are none; nested too deep.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def check(value: Any, shape: Shape, at: str = "") -> None:
    """Raises ValueError where the value has another shape; the message says at which key."""
    where = f"{at}: " if at else ""
    if isinstance(shape, list):
        check(value, list, at)
        for place, entry in enumerate(value):
            check(entry, shape[0], f"{at}[{place}]")
    elif isinstance(shape, dict):
        check(value, dict, at)
        every = shape.get(str)
        for key in shape if every is None else value:
            if key not in value:
                raise ValueError(f"{where}no {key!r}")
            check(value[key], shape[key] if every is None else every, f"{at}.{key}" if at else key)
    else:
        kinds = shape if isinstance(shape, tuple) else (shape,)
        fits = isinstance(value, (*kinds, int) if float in kinds else kinds)
        if not fits or (isinstance(value, bool) and bool not in kinds and object not in kinds):
            names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise ValueError(f"{where}expected {names}, got {_short(value)}")
        if isinstance(value, float) and not math.isfinite(value):  # 1e999
            raise ValueError(f"{where}expected a finite number, got {value}")
        if isinstance(value, int) and not -_HUGE <= value < _HUGE:
            raise ValueError(f"{where}expected a number of 64 bits, got {_short(value)}")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
