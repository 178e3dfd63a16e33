# SPDX-License-Identifier: Apache-2.0
"""`patchrec-fast info`."""

import argparse

EXAMPLE = "  patchrec-fast info"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(options: argparse.Namespace) -> int:
    from ..info import report

    print(report())
    return 0
