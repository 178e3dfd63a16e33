# SPDX-License-Identifier: Apache-2.0
"""`patchrec-fast COMMAND`: finds the command's module, parses, runs, and turns an error into one line.

A command is a module of this package with `EXAMPLE` (text for `--help`), `add_arguments(parser)` and
`run(options) -> exit status`. Only the module of the command that was asked for is imported.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from .. import __version__
from .completion import SHELLS, script

COMMANDS = {
    "bench": "run the benchmarks of a checkout of the repository",
    "data": "download, prepare, look at and make up datasets",
    "demo": "the whole story on this machine: data, training, evaluation, cost, report",
    "evaluate": "HR@K and NDCG@K of a trained model, with intervals, time and memory",
    "info": "versions, and which backend serves which operator on which device",
    "profile": "what a user costs, by policy and by the length of the history",
    "recommend": "the next titles for one history",
    "report": "one HTML file of what the other commands measured",
    "train": "train one stage: text, patch pre-training, item or session patches",
}
INTERRUPTED = 130  # what a shell gives for the signal
_USAGE = "patchrec-fast COMMAND [options]\n       patchrec-fast COMMAND --help"
# What bad input, missing files and missing packages raise; anything else is a defect and keeps its traceback.
_EXPECTED = (ValueError, TypeError, OSError, ImportError, RuntimeError, KeyboardInterrupt)


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with an option; `--help` has the rest, a page of it for some commands."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: without the program's name; the process's own where None.

    Returns:
        0; 1 where the command failed, with one line on stderr (a traceback with `--debug`); 130 where it was
        interrupted. argparse exits with 2 on a wrong option.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = given[0] if given and given[0] in COMMANDS else None
    if name is None:
        _front(given)
        return 0
    options = parser_of(name).parse_args(given[1:])
    try:
        return options.command(options)
    except _EXPECTED as error:
        if options.debug:
            raise
        if isinstance(error, KeyboardInterrupt):
            print(f"\npatchrec-fast {name}: interrupted{f'; {error}' if error.args else ''}", file=sys.stderr)
            return INTERRUPTED
        print(f"patchrec-fast {name}: error: {_one_line(error)}", file=sys.stderr)
        return 1


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of one of `COMMANDS`; what it parses has `command`, which runs it."""
    module = importlib.import_module(f".{name}", __package__)
    parser = Parser(
        f"patchrec-fast {name}",
        description=COMMANDS[name][0].upper() + COMMANDS[name][1:] + ".",
        epilog="example:\n" + module.EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(command=module.run)
    return parser


def _front(given: list[str]) -> None:
    """The help of the program itself, or the error of a command that does not exist."""
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())
    parser = Parser(
        "patchrec-fast",
        usage=_USAGE,
        description="Recommend with language models over very long user histories.",
        epilog=f"commands:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"patchrec-fast {__version__}")
    parser.add_argument("--print-completion", choices=SHELLS, metavar="SHELL", help=f"for {' or '.join(SHELLS)}")
    shell = parser.parse_args(given if given and given[0].startswith("-") else []).print_completion
    if shell:
        try:
            print(script(shell, map(parser_of, COMMANDS)))
        except ImportError as error:
            parser.exit(1, f"patchrec-fast: error: {error}\n")
    elif given:
        parser.error(f"unknown command {given[0]!r}, expected one of {', '.join(COMMANDS)}")
    else:
        parser.print_help()


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__
