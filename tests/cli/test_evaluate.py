# SPDX-License-Identifier: Apache-2.0
"""`patchrec-fast evaluate`: the same numbers as the library, a kill, and errors in one line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import patchrec_fast as pf
from patchrec_fast import _files
from patchrec_fast._lock import only_one
from patchrec_fast.cli.main import main
from patchrec_fast.evaluation import Popularity, Report
from patchrec_fast.layout.config import PromptConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(folders, capsys):
    """run(*flags): exit status, stdout, stderr."""

    def call(*flags):
        status = main(["evaluate", *folders.flags, *map(str, flags)])
        return status, *capsys.readouterr()

    return call


def by_library(folders, policy=None):
    settings = PromptConfig.load(folders.model)
    tokenizer = AutoTokenizer.from_pretrained(folders.model)
    packer = settings.packer(folders.dataset.titles, tokenizer)
    if policy is not None:
        packer = pf.Packer(packer.catalogue, packer.prompt, *policy)
    return pf.Recommender(AutoModelForCausalLM.from_pretrained(folders.model), packer)


def test_as_the_library(run, folders, tmp_path):
    status, shown, _ = run("--out", tmp_path, "--k", 5, 20, "--json")
    assert status == 0
    expected = pf.evaluate(by_library(folders), folders.dataset.split("test", 50), (5, 20), progress=False)
    found = json.loads(shown)
    assert found["report"]["ranks"] == expected.ranks == Report.load(tmp_path / "report.json").ranks
    assert found["report"]["users"] == expected.users
    assert found["report"]["metrics"]["HR@20"]["value"] == expected.metrics()["HR@20"].value
    assert found["report"]["rows"] == expected.rows


def test_other_prompts(run, folders):
    _, shown, _ = run("--policy", "pft-i", "--keep", 2, "--max-items", 0, "--limit", 6, "--json")
    report = json.loads(shown)["report"]
    assert report["settings"]["policy"] == "ItemPatches(keep=2)"
    assert report["settings"]["max_items"] is None
    split = folders.dataset.split("test", None)
    places = np.arange(6) * len(split.targets) // 6
    flat, offsets = split.histories
    rec = by_library(folders, (pf.ItemPatches(2), None))
    batch = rec.packer.pack([flat[offsets[place] : offsets[place + 1]] for place in places])
    assert report["rows"] == len(batch.position_ids) / 6


def test_a_limit_keeps_whose_samples_they_are(run, folders):
    _, whole, _ = run("--json")
    _, part, _ = run("--limit", 10, "--json")
    users, some = (json.loads(shown)["report"]["users"] for shown in (whole, part))
    assert some == [users[place] for place in np.arange(10) * len(users) // 10]


def test_baselines_and_comparison(run, folders, tmp_path):
    run("--out", tmp_path, "--limit", 12)
    flags = ("--limit", 12, "--baselines", "--compare", tmp_path / "report.json")
    _, shown, _ = run(*flags, "--json", "--out", tmp_path / "second")
    assert (tmp_path / "second" / "report.json").read_text() == shown
    found = json.loads(shown)
    popular = {report["name"]: report for report in found["baselines"]}["popularity, unseen"]
    ranker = Popularity(folders.dataset, by_library(folders).catalogue)
    ranks = ranker.rank(*folders.dataset.split("test", None), exclude_seen=True)
    assert popular["ranks"] == ranks[np.arange(12) * len(ranks) // 12].tolist()
    assert found["compared"]["model, SessionPatches(group=5), beam"]["HR@20"]["p_value"] == 1
    difference = found["compared"]["popularity, unseen"]["HR@20"]["difference"]["value"]
    ours, theirs = (report["metrics"]["HR@20"]["value"] for report in (found["report"], popular))
    assert difference == pytest.approx(ours - theirs)
    _, table, _ = run(*flags)
    for text in ("HR@20", "popularity, unseen", "ease, unseen", "against random", "rows a prompt", "decode"):
        assert text in table
        assert text in (tmp_path / "second" / "report.txt").read_text()


@pytest.mark.parametrize("method", ["exact", "diverse"])
def test_methods(run, method):
    status, shown, _ = run("--method", method, "--limit", 3, "--k", 4, "--exclude-seen", "--json")
    assert status == 0
    assert json.loads(shown)["report"]["settings"]["method"] == method


def test_killed_and_started_again(run, folders, tmp_path):
    samples = 40
    flags = ["--batch-size", "1", "--limit", str(samples), "--out", str(tmp_path / "out")]
    journal = tmp_path / "out" / "batches.jsonl"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    child = subprocess.Popen(
        [sys.executable, "-m", "patchrec_fast.cli", "evaluate", *folders.flags, *flags],
        env={**os.environ, "PYTHONPATH": paths},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while child.poll() is None and time.monotonic() < deadline:
        if journal.exists() and journal.read_bytes().count(b"\n") > 3:
            break
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    before = journal.read_bytes().count(b"\n") - 1
    assert 3 <= before < samples
    status, shown, _ = run(*flags, "--json")
    assert status == 0
    _, whole, _ = run("--limit", samples, "--json")
    assert json.loads(shown)["report"]["ranks"] == json.loads(whole)["report"]["ranks"]
    kept = [json.loads(line)["begin"] for line in journal.read_text().splitlines()[1:]]
    assert kept == [*range(samples)]


def copy(folders, tmp_path, **files):
    model = tmp_path / "model"
    shutil.copytree(folders.model, model)
    for name, content in files.items():
        (model / name.replace("__", ".")).write_bytes(content)
    return model


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--keep", "3"], "--keep: the policy is SessionPatches(group=5), which has no keep"),
        (["--policy", "pft-i", "--group", "3"], "--group: the policy is ItemPatches(keep=5), which has no group"),
        (["--policy", "text", "--keep", "0"], "--keep: the policy is Text()"),
        (["--device", "abacus"], "--device"),
        (["--compare", "nowhere.json"], "nowhere.json"),
    ],
)
def test_bad_input_is_one_line(run, flags, message):
    status, _, shown = run(*flags)
    assert status == 1
    assert message in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize("flag", ["--k", "--limit", "--batch-size", "--group", "--keep", "--max-items"])
@pytest.mark.parametrize("value", ["-1", "x", "1.5", "nan", str(10**30), "9" * 5000, "\x1b[2J"])
def test_absurd_numbers_are_refused_by_name(run, capsys, flag, value):
    with pytest.raises(SystemExit) as stopped:
        run(flag, value)
    assert stopped.value.code == 2
    shown = capsys.readouterr().err
    assert flag in shown
    assert shown.count("\n") == 1
    assert len(shown) < 250
    assert "\x1b" not in shown


def test_more_than_anybody_lists(run):
    status, _, shown = run("--limit", 2, "--k", 5, 10**9)
    assert status == 1
    said = "patchrec-fast evaluate: error: ks: expected at most 10000, got 1000000000; there are 300 titles"
    assert shown.splitlines()[1:] == [said]


@pytest.mark.parametrize(
    ("flags", "policy", "max_items"),
    [
        (["--anchor", "oldest"], pf.SessionPatches(5, anchor="oldest"), 50),
        (["--policy", "pft-i", "--patch-step", 3], pf.ItemPatches(5, step=3), 50),
        ([], pf.SessionPatches(5), 50),
        (["--group", 7], pf.SessionPatches(7), 50),
        (["--policy", "pft-s"], pf.SessionPatches(5), 50),
        (["--policy", "pft-s", "--group", 7, "--max-items", 3], pf.SessionPatches(7), 3),
        (["--policy", "pft-i", "--keep", 0], pf.ItemPatches(0), 50),
        (["--policy", "text", "--max-items", 0], pf.Text(), None),
    ],
)
def test_flags_change_the_saved_policy_field_by_field(run, flags, policy, max_items):
    status, shown, told = run(*flags, "--limit", 2, "--k", 3, "--json")
    assert status == 0
    found = json.loads(shown)
    assert found["prompt"] == {"policy": repr(policy), "max_items": max_items, "items_step": 1}
    assert (found["report"]["settings"]["policy"], found["report"]["settings"]["max_items"]) == (
        repr(policy),
        max_items,
    )
    items = "all items" if max_items is None else f"newest {max_items} items"
    assert f"prompt: {policy!r}, {items}\n" in told


def test_a_group_other_than_the_default_stays(folders, tmp_path, run):
    model = copy(folders, tmp_path)
    PromptConfig("Seen [HISTORY_SEQUENCE]. Next?", policy=pf.SessionPatches(20), max_items=None).save(model)
    for flags in ([], ["--policy", "pft-s"], ["--policy", "pft-s", "--max-items", "0"]):
        _, _, told = run("--model", model, *flags, "--limit", 1, "--k", 1)
        assert "prompt: SessionPatches(group=20), all items\n" in told


def test_a_damaged_model(run, folders, tmp_path):
    whole = (folders.model / "model.safetensors").read_bytes()
    status, _, shown = run("--model", copy(folders, tmp_path, model__safetensors=whole[: len(whole) // 2]))
    assert status == 1
    assert "damaged" in shown


def test_interrupted_it_says_how_to_go_on(run, tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("patchrec_fast.evaluation.evaluate", interrupted)
    status, _, shown = run("--limit", 3, "--out", tmp_path)
    assert status == 130
    assert "the same command goes on" in shown
    assert "goes on" not in run("--limit", 3)[2]  # nothing is kept


def test_another_run_in_the_same_folder(run, tmp_path):
    run("--limit", 3, "--out", tmp_path)
    status, _, shown = run("--limit", 4, "--out", tmp_path)
    assert status == 1
    assert "of another run, which differs in the samples; use another" in shown
    assert len(shown.splitlines()[-1]) < 250  # without the fingerprints


def test_reports_are_written_by_the_run_that_holds_the_folder(run, tmp_path, monkeypatch):
    write, written = _files.write, []

    def held(path, text):
        with pytest.raises(ValueError, match="another run is writing"), only_one(tmp_path):
            pass
        written.append(Path(path).name)
        write(path, text)

    monkeypatch.setattr(_files, "write", held)
    assert run("--limit", 2, "--k", 3, "--out", tmp_path)[0] == 0
    assert written == 2 * ["report.json", "report.txt"]  # the library's, and more of the command


def test_a_split_without_samples(run, folders, tmp_path):
    dataset = pf.data.generate(users=40, items=300)
    dataset.splits["val"] = np.full((40, 2), -1, np.int32)
    pf.data.save(dataset, tmp_path)
    status, _, shown = run("--data", tmp_path, "--split", "val")
    assert status == 1
    assert "no val samples" in shown
