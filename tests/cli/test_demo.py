# SPDX-License-Identifier: Apache-2.0
"""`patchrec-fast demo`: every command that it shows parses, and the whole of it makes a whole report."""

import argparse
import sys

import pytest

from patchrec_fast.cli import demo
from patchrec_fast.cli.main import main, parser_of
from patchrec_fast.report import inputs


@pytest.fixture
def anywhere(monkeypatch):
    """Folders that are named need not be there yet."""
    monkeypatch.setattr("patchrec_fast.cli.folders.check_folder", lambda *_, **__: None)


def test_its_commands_parse(tmp_path, anywhere):
    made = list(demo.stages("data/ml-1m", 1435, tmp_path, 3, 4))
    ours = [command[1:] for _, command in made if command[0] == "patchrec-fast"]
    assert [name for name, *_ in ours] == ["train"] * 3 + ["evaluate"] * 2 + ["profile", "report"]
    parsed = [parser_of(name).parse_args(flags) for name, *flags in ours]
    written = {options.out for options in parsed}
    assert set(parsed[-1].run + parsed[-1].evaluation + parsed[-1].profile) == written - {parsed[-1].out}
    assert parsed[2].model == parsed[1].out
    assert len(inputs.benchmarks(parsed[-1].bench)) >= 2  # every file of the repository's that it names is readable
    assert parsed[5].lengths == [50, 100, 200, 400]
    assert parsed[-1].model == parsed[2].out


@pytest.mark.parametrize("longest", [300, 150, 30, 12, 2, 1])
def test_short_histories_are_profiled_too(tmp_path, longest, anywhere):
    (flags,) = (command[2:] for _, command in demo.stages("d", longest, tmp_path, 3, 4) if command[1] == "profile")
    options = parser_of("profile").parse_args(flags)
    assert max(options.lengths) <= longest
    assert min(options.lengths) >= 1


def test_without_network_the_data_are_generated(monkeypatch, tmp_path, capsys):
    def refused(*arguments, **options):
        raise OSError("no route")

    monkeypatch.setattr(sys.modules["patchrec_fast.data.download"], "download", refused)
    assert demo._downloaded(tmp_path) is None
    assert "no route" in capsys.readouterr().out


def test_prepared_data_are_found(monkeypatch, tmp_path):
    monkeypatch.setenv("PATCHREC_FAST_DATA", str(tmp_path))
    assert demo._found() is None
    for name in ("ml-100k", "ml-1m"):  # the later one is preferred
        (tmp_path / name).mkdir()
        assert demo._found() == str(tmp_path / name)
    monkeypatch.delenv("PATCHREC_FAST_DATA")
    assert demo._found() is None


def test_a_stage_that_fails_ends_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(demo, "_perform", lambda command: 7)
    assert main(["demo", "--data", "sample", "--out", str(tmp_path / "report")]) == 7
    assert "Open" not in capsys.readouterr().out


def test_interrupted_it_says_how_to_go_on(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(demo, "main", lambda command: 130)
    assert main(["demo", "--data", "sample", "--out", str(tmp_path / "report")]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_an_interrupted_preparation_is_no_reason_to_generate_data(monkeypatch, tmp_path):
    monkeypatch.setattr(sys.modules["patchrec_fast.data.download"], "download", lambda *arguments, **options: tmp_path)
    monkeypatch.setattr(demo, "main", lambda command: 130)
    with pytest.raises(KeyboardInterrupt):
        demo._downloaded(tmp_path)


def test_the_whole(folders, monkeypatch, tmp_path, capsys):
    for name in ("accelerate", "matplotlib"):
        pytest.importorskip(name)
    monkeypatch.setattr(demo, "checkout", lambda: None)  # its benchmark takes 2 GB of memory
    monkeypatch.delenv("PATCHREC_FAST_TOKENIZER", raising=False)
    options = argparse.Namespace(data=str(folders.data), out=str(tmp_path / "report"), steps=1, samples=2)
    assert demo.run(options) == 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("Nothing was given") == 1  # the benchmarks
    shown = capsys.readouterr().out
    assert shown.count("$ patchrec-fast ") == 7
    assert str(tmp_path / "report" / "report.html") in shown
    assert "--resume" not in shown

    weights = tmp_path / "report" / "text" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert demo.run(options) == 0  # goes on: there is nothing left to train
    assert capsys.readouterr().out.count("--resume") == 3
    assert weights.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("display", "terminal", "opens"), [(":0", True, True), (":0", False, False), ("", True, False)]
)
def test_the_report_is_opened_where_somebody_looks(monkeypatch, tmp_path, display, terminal, opens):
    monkeypatch.setattr(demo, "_perform", lambda command: 0)
    monkeypatch.setattr(demo.sys, "platform", "linux")
    monkeypatch.setattr(demo.sys.stdout, "isatty", lambda: terminal, raising=False)
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    opened = []
    monkeypatch.setattr(demo.webbrowser, "open", opened.append)
    assert main(["demo", "--data", "sample", "--out", str(tmp_path / "report")]) == 0
    assert opened == [(tmp_path / "report" / "report.html").as_uri()] * opens
