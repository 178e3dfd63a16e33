# SPDX-License-Identifier: Apache-2.0
"""`patchrec-fast info`."""

import argparse

from ..info import report

EXAMPLE = "  patchrec-fast info"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(options: argparse.Namespace) -> int:
    print(report())
    return 0
