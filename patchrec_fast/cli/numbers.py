# SPDX-License-Identifier: Apache-2.0
"""Types of options that are numbers."""

import argparse
from collections.abc import Callable

LARGEST = 2**31 - 1


def whole(least: int) -> Callable[[str], int]:
    """A whole number from `least` to `LARGEST`; argparse says which option had another."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:  # so are thousands of digits
            number = least - 1
        if least <= number <= LARGEST:
            return number
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        raise argparse.ArgumentTypeError(f"expected a whole number from {least} to {LARGEST:,}, got {shown!r}")

    return parse
