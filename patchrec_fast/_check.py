# SPDX-License-Identifier: Apache-2.0
"""Numbers that a caller gives, checked; an error names the argument."""

import numpy as np


def check_count(name: str, value: object, minimum: int) -> int:
    """`value` as Python's int, which no sum overflows; an error names `name` where it is none or below `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected an int, got {value!r} ({type(value).__name__})")
    if value < minimum:
        raise ValueError(f"{name}: expected at least {minimum}, got {value}")
    return int(value)


def check_number(name: str, value: object, least: float, most: float, what: str = "a number") -> float:
    """`value` as Python's float; an error names `name` where it is none, NaN or outside `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name}: expected a number, got {value!r} ({type(value).__name__})")
    if not least <= value <= most:
        raise ValueError(f"{name}: expected {what} between {least:g} and {most:g}, got {value}")
    return float(value)
