# SPDX-License-Identifier: Apache-2.0
"""`patchrec-fast --print-completion SHELL`: a script that completes commands and their options."""

import argparse
from collections.abc import Iterable

SHELLS = ("bash", "zsh")


def script(shell: str, commands: Iterable[argparse.ArgumentParser]) -> str:
    """The completion script of a shell.

    Args:
        shell: one of `SHELLS`.
        commands: the parser of each command, which is named "patchrec-fast NAME".

    Raises:
        ImportError: shtab is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise ImportError("shell completion needs shtab: pip install shtab") from error
    program = argparse.ArgumentParser("patchrec-fast")
    actions = program.add_subparsers()
    for command in commands:
        name = command.prog.removeprefix("patchrec-fast ")
        actions.add_parser(name, parents=[command], add_help=False, help=command.description)
    return shtab.complete(program, shell)
