# SPDX-License-Identifier: Apache-2.0
"""`patchrec-fast profile`: files and tables."""

import csv
import json

import pytest

from patchrec_fast.cli.main import main


@pytest.fixture
def run(folders, capsys):
    def call(*flags):
        status = main(["profile", "--data", str(folders.data), *map(str, flags)])
        return status, *capsys.readouterr()

    return call


def test_a_model_folder(run, folders, tmp_path):
    pytest.importorskip("matplotlib")
    more = ["--more-than", 200, "--lengths", 5, 50, "--k", 2, "--trace", tmp_path / "trace.json", "--out", tmp_path]
    status, shown, _ = run("--model", folders.model, *more)
    assert status == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "profile.csv",
        "growth.csv",
        "growth.png",
        "profile.json",
        "trace.json",
    }
    assert len(list(csv.DictReader((tmp_path / "growth.csv").open()))) == 6
    assert len(json.loads((tmp_path / "profile.json").read_text())["compared"]) == 4
    assert "PFT-S, all items" in shown


def test_a_random_model(run, folders, tmp_path):
    pytest.importorskip("matplotlib")
    flags = ["--shape", "tiny", "--tokenizer", folders.model, "--out", tmp_path, "--users", 1, "--more-than", 5]
    status, shown, _ = run(*flags, "--lengths", 5, "--k", 2, "--dtype", "bfloat16", "--json")
    assert status == 0
    assert [each["items"] for each in json.loads(shown)["growth"]] == [5, 5, 5]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shape", "tiny"], "--tokenizer"),
        (["--model", "m", "--tokenizer", "t"], "--tokenizer"),
        (["--model", "nowhere"], "nowhere: no config.json"),
        (["--shape", "tiny", "--tokenizer", "nowhere"], "nowhere: no tokenizer_config.json"),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, flags, message):
    status, _, shown = run(*flags, "--more-than", 5, "--out", tmp_path)
    assert status == 1
    assert message in shown
    assert shown.count("\n") == 1


def test_nobody_is_long_enough(run, tmp_path):
    status, _, shown = run("--shape", "tiny", "--out", tmp_path)
    assert status == 1
    assert "more than 500" in shown
