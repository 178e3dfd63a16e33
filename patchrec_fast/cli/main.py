# SPDX-License-Identifier: Apache-2.0
"""`patchrec-fast COMMAND`: finds the command's module, parses, runs, and turns an error into one line.

A command is a module of this package with `EXAMPLE` (text for `--help`), `add_arguments(parser)` and
`run(options) -> exit status`. Only the module of the command that was asked for is imported.
"""

import argparse
import importlib
import io
import os
import select
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from .. import __version__
from .._text import near, printable
from .completion import SHELLS, script

COMMANDS = {
    "baseline": "a recommender without a language model, learnt and evaluated",
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
INTERRUPTED, UNREAD = 130, 141  # what a shell gives for the signals
_USAGE = "patchrec-fast COMMAND [options]\n       patchrec-fast COMMAND --help"
# What bad input, missing files and missing packages raise; anything else is a defect and keeps its traceback.
_EXPECTED = (ValueError, TypeError, OSError, ImportError, RuntimeError, KeyboardInterrupt)


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with an option; `--help` has the rest, a page of it for some commands."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:  # type: ignore[override]
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unknown {unknown[0]!r}{near(unknown[0].partition('=')[0], self._option_string_actions)}")
        return options, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            said = f"expected one of {', '.join(known)}, got {str(value)!r}{near(str(value), known)}"
            raise argparse.ArgumentError(action, said)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {_one_line(message)}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: without the program's name; the process's own where None.

    Returns:
        0; 1 where the command failed, with one line on stderr (a traceback with `--debug`); 130 where it was
        interrupted, 141 where nobody reads stdout any more. argparse exits with 2 on a wrong option.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a title that its encoding lacks is no reason to fail
    try:
        status = _command(given)
    except SystemExit:
        if (failed := _unwritten()) is not None:
            return _unread(failed)
        raise
    failed = _unwritten()
    return status if failed is None else _unread(failed)


def _command(given: list[str]) -> int:
    name = given[0] if given and given[0] in COMMANDS else None
    if name is None:
        _front(given)
        return 0
    options = parser_of(name).parse_args(given[1:])
    try:
        with _warnings_in_a_line(name, as_they_are=options.debug):
            return options.command(options)
    except _EXPECTED as error:
        if isinstance(error, OSError) and (failed := _unwritten(error)) is not None:
            return _unread(failed)
        if options.debug:
            raise
        if isinstance(error, KeyboardInterrupt):
            print(
                f"\npatchrec-fast {name}: interrupted{f'; {_one_line(error)}' if error.args else ''}", file=sys.stderr
            )
            return INTERRUPTED
        print(f"patchrec-fast {name}: error: {_one_line(error)}", file=sys.stderr)
        return 1


def _unwritten(raised: OSError | None = None) -> OSError | None:
    """What keeps standard output from being written: a flush tells, or of an unbuffered one what was raised. It goes
    nowhere then, so that Python does not try again at its end."""
    if sys.stdout is None:
        return None
    try:
        sys.stdout.flush()
        if not isinstance(raised, BrokenPipeError) or not _nobody_reads():
            return None
        failed: OSError = raised
    except OSError as error:
        failed = error
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return failed


def _nobody_reads() -> bool:
    """Whether standard output is a pipe without another end."""
    poll = select.poll()
    poll.register(sys.stdout, select.POLLERR)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _unread(failed: OSError) -> int:
    """The exit status; a reader that is gone (`| head`) is no error to speak of."""
    if isinstance(failed, BrokenPipeError):
        return UNREAD
    print(f"patchrec-fast: error: standard output: {failed.strerror or failed}", file=sys.stderr)
    return 1


@contextmanager
def _warnings_in_a_line(name: str, as_they_are: bool) -> Iterator[None]:
    """A warning as an error is shown: in one line that is safe to print, without the place in our code."""
    before = warnings.formatwarning
    if not as_they_are:
        warnings.formatwarning = lambda message, *_, **__: f"patchrec-fast {name}: warning: {_one_line(message)}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


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
        parser.error(f"expected a command of {', '.join(COMMANDS)}, got {given[0]!r}{near(given[0], COMMANDS)}")
    else:
        parser.print_help()


def _one_line(error: object) -> str:
    return printable(" ".join(str(error).split())) or type(error).__name__
