# SPDX-License-Identifier: Apache-2.0
"""`patchrec-fast profile`: files and tables."""

import csv
import dataclasses
import json
import shutil
import signal

import numpy as np
import pytest
from transformers import AutoTokenizer

from patchrec_fast import SessionPatches, data
from patchrec_fast.cli.main import main
from patchrec_fast.evaluation.profile import long_histories
from patchrec_fast.layout.config import PromptConfig


@pytest.fixture
def run(folders, capsys):
    def call(*flags):
        status = main(["profile", "--data", str(folders.data), *map(str, flags)])
        return status, *capsys.readouterr()

    return call


def test_a_model_folder(run, folders, tmp_path):
    pytest.importorskip("matplotlib")
    more = ["--more-than", 200, "--lengths", 5, 50, "--k", 2, "--trace", tmp_path / "trace.json", "--out", tmp_path]
    status, shown, told = run("--model", folders.model, *more)
    assert status == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "profile.csv",
        "growth.csv",
        "growth.png",
        "profile.json",
        "trace.json",
    }
    assert len(list(csv.DictReader((tmp_path / "growth.csv").open()))) == 8
    found = json.loads((tmp_path / "profile.json").read_text())
    assert found["prompt"] == PromptConfig.load(folders.model).to_dict()
    own, *figure_8 = found["compared"]
    assert (own["setting"], own["items"], len(figure_8)) == ("own prompt", 50, 4)
    assert "PFT-S, all items" in shown
    assert "prompt: SessionPatches(group=5), newest 50 items\n" in told
    assert main(["report", "--out", str(tmp_path / "r.html"), "--profile", str(tmp_path)]) == 0


def test_the_prompt_is_the_model_s_own(run, folders, tmp_path):
    """Rows of its prompts, as the packer counts them."""
    pytest.importorskip("matplotlib")
    model = tmp_path / "model"
    shutil.copytree(folders.model, model)
    settings = PromptConfig(
        "Of all that " * 40 + "[HISTORY_SEQUENCE]: next?", "Be brief.", False, SessionPatches(20), 30
    )
    settings.save(model)
    history = long_histories(folders.dataset, 5, 1)
    flags = ["--model", model, "--more-than", 5, "--users", 1, "--lengths", 5, "--k", 1, "--json", "--out", tmp_path]
    for more, changed in (([], settings), (["--group", 7], dataclasses.replace(settings, policy=SessionPatches(7)))):
        _, shown, _ = run(*flags, *more)
        found = json.loads(shown)
        assert found["prompt"] == changed.to_dict()
        packer = changed.packer(folders.dataset.titles, AutoTokenizer.from_pretrained(model))
        assert found["compared"][0]["rows"] == packer.pack(history).max_seqlen


def test_a_full_disk_names_the_file(run, folders, tmp_path):
    """A limit of a file's size stands for it; what was measured is printed, and the files before it are whole."""
    pytest.importorskip("matplotlib")
    resource = pytest.importorskip("resource")
    flags = ["--model", folders.model, "--more-than", 5, "--users", 1, "--lengths", 5, "--k", 1, "--json"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for limit, name, more in (
            (1000, "out/profile.json", []),
            (3000, "out/growth.png", []),
            (200_000, "trace.json", ["--trace", tmp_path / "trace.json"]),
        ):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            status, shown, told = run(*flags, *more, "--out", tmp_path / "out")
            assert status == 1
            assert str(tmp_path / name) in told.splitlines()[-1]
            assert json.loads(shown.splitlines()[0])["compared"]
            assert not (tmp_path / name).exists()
            assert not list(tmp_path.rglob(".*"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    json.loads((tmp_path / "out" / "profile.json").read_text())


def test_what_cannot_be_written_is_said_before_anything_is_measured(run, folders, tmp_path, monkeypatch):
    def measured(*_):
        raise AssertionError("measured")

    monkeypatch.setattr("patchrec_fast.cli.profile._profiler", measured)
    (tmp_path / "file").touch()
    flags = ["--shape", "tiny", "--tokenizer", folders.model, "--more-than", 5]
    for more, said in (
        (["--out", tmp_path / "file"], "file"),
        (["--out", tmp_path / "out", "--trace", tmp_path], f"{tmp_path}: a folder, expected a file"),
        (["--out", tmp_path / "out", "--lengths", 10**6], "--lengths: expected at most"),
    ):
        status, _, shown = run(*flags, *more)
        assert status == 1
        assert said in shown
        assert shown.count("\n") == 1


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
        (["--model", ".", "--tokenizer", "sample"], "--tokenizer"),
        (["--model", "."], ". has no config.json"),
        (["--shape", "tiny", "--tokenizer", "."], ". has no tokenizer_config.json"),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, flags, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, shown = run(*flags, "--more-than", 5, "--out", tmp_path)
    assert status == 1
    assert message in shown
    assert shown.count("\n") == 1


def test_nobody_is_long_enough(run, tmp_path):
    status, _, shown = run("--shape", "tiny", "--out", tmp_path, "--more-than", 500)
    assert status == 1
    assert "more than 500" in shown


def test_data_of_short_histories(folders, tmp_path, capsys):
    """What is measured fits them: no length that nobody has, no setting twice, patches where there is room for some."""
    pytest.importorskip("matplotlib")
    offsets = np.arange(13) * 12
    items = np.random.default_rng(0).integers(0, 300, 144)
    split = {name: np.full((12, 2), -1) for name in ("train", "val", "test")} | {"test": np.full((12, 2), 11)}
    data.save(data.Dataset(items, offsets, folders.dataset.titles, split), tmp_path / "data")
    flags = ["--model", folders.model, "--data", tmp_path / "data", "--out", tmp_path / "out", "--k", 2, "--json"]
    assert main(["profile", *map(str, flags)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["setting"] for each in found["compared"]] == [
        "own prompt", "text, all items", "PFT-I, all items", "PFT-S, all items"
    ]  # fmt: skip
    assert {each["users"] for each in found["compared"]} == {10}
    assert [each["items"] for each in found["growth"]] == [1, 3, 6, 12] * 4
    text, patches, sessions = (each["rows"] for each in found["compared"][1:])
    assert text > patches > sessions
