# SPDX-License-Identifier: Apache-2.0
"""The command line's frame: help, unknown commands, errors in one line."""

import os
import select
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path
from types import ModuleType

import pytest

from patchrec_fast import __version__
from patchrec_fast._text import printable
from patchrec_fast.cli import main as cli

ROOT = Path(__file__).parents[2]
BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


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


@pytest.mark.parametrize("words", [[], *([name] for name in cli.COMMANDS), ["data", "prepare"]])
def test_help_imports_nothing_heavy(words):
    """It is to be there in 0.3 s; torch alone takes 2."""
    heavy = ("torch", "transformers", "pyarrow", "tqdm", "numpy")
    code = f"""
import sys
from patchrec_fast.cli.main import main
try:
    main({[*words, "--help"]!r})
except SystemExit:
    print(*(name for name in {heavy!r} if name in sys.modules), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stderr.strip()) == (0, "")


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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("trian", "got 'trian', did you mean 'train'?"),
        (
            "train --stage pfts",
            "argument --stage: expected one of text, pretrain, pft-i, pft-s, dropout, history, got 'pfts', did",
        ),
        ("info --debgu", "unknown '--debgu', did you mean '--debug'?"),
        (
            "data stat x",
            "ACTION: expected one of prepare, download, stats, sample, shop, got 'stat', did you mean 'stats'?",
        ),
        ("data sample --out x --uesrs=3", "did you mean '--users'?"),
        ("info more", "unknown 'more'"),
        ("train --model folder/nmae", "argument --model: no folder folder/nmae, did you mean folder/name?"),
        ("evaluate --data foldr", "argument --data: no folder foldr, did you mean folder?"),
        ("recommend --model own/er", "argument --model: no folder own/er"),
        ("profile --tokenizer ./x", "argument --tokenizer: no folder ./x"),
        ("report --run folder x", "argument --run: no folder x"),
        ("demo --data x", "argument --data: no folder x"),
    ],
)
def test_did_you_mean(words, said, capsys, tmp_path, monkeypatch):
    (tmp_path / "folder" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(words.split())
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_data_help_points_to_the_help_of_its_actions(capsys):
    shown = []
    for words in (["data"], ["data", "prepare"]):
        with pytest.raises(SystemExit):
            cli.main([*words, "--help"])
        shown.append(capsys.readouterr().out)
    assert "patchrec-fast data ACTION --help" in shown[0]
    assert "--min-user" not in shown[0]
    assert "--min-user" in shown[1]


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


EVIL = "\x1b]0;title\x07\x1b[2J\x9b1mtwo\nlines\u202e\u2066\u2028\ud800\x7f"


def test_nothing_that_a_terminal_obeys_comes_out(failing, capsys):
    failing(ValueError(EVIL))
    assert cli.main(["failing"]) == 1
    with pytest.raises(SystemExit):
        cli.main(["info", EVIL])
    for line in capsys.readouterr().err.splitlines():
        assert line.isprintable()


def test_text_is_printable():
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        shown = printable(character)
        assert shown == character or (shown.isprintable() and len(shown) > 1)
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(character) in BIDI:
            assert shown != character
    persian, emoji = "\u06a9\u062a\u0627\u0628\u200c\u0647\u0627", "\U0001f469\u200d\U0001f680"
    for text in ("Amélie", "千と千尋", persian, emoji, "a\u00a0b"):
        assert printable(text) == text


def test_a_warning_is_one_line(failing, monkeypatch, capsys):
    def warn(options):
        warnings.warn(EVIL, stacklevel=1)
        return 0

    def show(*given, **_):
        sys.stderr.write(warnings.formatwarning(*given))

    failing(None)
    monkeypatch.setattr(sys.modules["patchrec_fast.cli.failing"], "run", warn)
    monkeypatch.setattr(warnings, "showwarning", show)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.main(["failing"]) == 0
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("patchrec-fast failing: warning: ")
    assert line.isprintable()


@pytest.mark.skipif(not hasattr(select, "poll"), reason="needs a POSIX system")
def test_a_reader_that_is_gone_and_a_full_disk():
    def run(stdout, unbuffered):
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-m", "patchrec_fast.cli", "train", "--help"]
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, env=environment, text=True)
        return done.returncode, done.stderr

    ours, theirs = os.pipe()
    os.close(ours)
    assert run(theirs, "") == (cli.UNREAD, "")
    os.close(theirs)
    if os.path.exists("/dev/full"):
        with open("/dev/full", "w") as full:
            said = "patchrec-fast: error: standard output: No space left on device\n"
            assert run(full, "") == (1, said)


def test_info_runs(capsys):
    assert cli.main(["info"]) == 0
    assert "compress on cpu" in capsys.readouterr().out
