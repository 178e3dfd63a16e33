# SPDX-License-Identifier: Apache-2.0
"""The command line's frame: help, unknown commands, errors in one line."""

import sys
from types import ModuleType

import pytest

from patchrec_fast import __version__
from patchrec_fast.cli import main as cli


@pytest.fixture
def failing(monkeypatch):
    """A command that raises what it is told to."""

    def install(error):
        def run(options):
            raise error

        module = ModuleType("failing")
        module.EXAMPLE = "  patchrec-fast failing"
        module.add_arguments = lambda parser: None
        module.run = run
        monkeypatch.setitem(sys.modules, "patchrec_fast.cli.failing", module)
        monkeypatch.setitem(cli.COMMANDS, "failing", "fails")

    return install


def test_help_lists_every_command(capsys):
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_helps_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([name, "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert f"patchrec-fast {name}" in shown.partition("example:")[2]


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert __version__ in capsys.readouterr().out


def test_an_unknown_command_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["trian"])
    assert stopped.value.code == 2
    assert "trian" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["train", "--stage", "pfts"], ["data"], ["data", "stats"], ["info", "--wrong"]])
def test_a_wrong_option_is_one_line_too(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert shown.endswith("--help\n")


@pytest.mark.parametrize("error", [ValueError("two\nlines"), OSError("disk"), ImportError("pip install x")])
def test_an_error_is_one_line(error, failing, capsys):
    failing(error)
    assert cli.main(["failing"]) == 1
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert " ".join(str(error).split()) in shown


def test_debug_shows_the_traceback(failing):
    failing(ValueError("here"))
    with pytest.raises(ValueError, match="here"):
        cli.main(["failing", "--debug"])


def test_a_defect_is_not_hidden(failing):
    failing(AssertionError("a defect"))
    with pytest.raises(AssertionError):
        cli.main(["failing"])


def test_interrupted(failing, capsys):
    failing(KeyboardInterrupt())
    assert cli.main(["failing"]) == 130


def test_info_runs(capsys):
    assert cli.main(["info"]) == 0
    assert "compress on cpu" in capsys.readouterr().out
