# SPDX-License-Identifier: Apache-2.0
"""`train`, `evaluate --out` and `report` killed at a file event, then run again as if nothing had happened.

CI takes a few events, `PATCHREC_FAST_TEST_SEED` others; `PATCHREC_FAST_TEST_KILLS=all` takes them all.
"""

import json
import os
import random

import pytest
import torch
from safetensors.torch import load_file

from patchrec_fast import data
from patchrec_fast.train.curves import read
from tests.kill import killed

pytest.importorskip("accelerate")
TINY = ["--recipe=tiny", "--steps=4", "--hidden=8", "--layers=1", "--heads=2", "--batch=4", "--save-steps=1"]
TINY += ["--eval-steps=4", "--log-steps=2", "--limit-train=16", "--limit-val=4", "--max-items=3", "--checkpoints=2"]
NEVER = 10**6


def events(kills):
    """Numbers of events from 1 on: all, or about `kills` of the first 200."""
    if os.environ.get("PATCHREC_FAST_TEST_KILLS") == "all":
        return range(1, NEVER)
    step = 200 // kills
    return range(random.Random(int(os.environ.get("PATCHREC_FAST_TEST_SEED", "0"))).randint(1, step), NEVER, step)


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The arguments of a run, and the folder of one that was not killed."""
    root = tmp_path_factory.mktemp("kill")
    dataset = data.generate(users=20, items=40)
    data.save(dataset, root / "data")
    data.sample_tokenizer(dataset.titles.values()).save_pretrained(root / "tokenizer")
    names = [f"--data={root / 'data'}", f"--tokenizer={root / 'tokenizer'}"]
    arguments = ["train", "--model=tiny", "--stage=pft-s", *names, *TINY]
    assert not killed(NEVER, root, *arguments, f"--out={root / 'whole'}")
    return arguments, root / "whole"


def test_train(trained, tmp_path):
    arguments, whole = trained
    weights = load_file(whole / "model.safetensors")
    for event in events(kills=4):
        out = tmp_path / str(event)
        if not killed(event, out, *arguments, f"--out={out}"):
            break
        resume = ["--resume"] if (out / "run.json").is_file() else []
        assert not killed(NEVER, out, *arguments, f"--out={out}", *resume), event
        found = load_file(out / "model.safetensors")
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[name], weights[name]) for name in found), event
        points = [[point[:4] for point in read(folder / "curves.csv")] for folder in (whole, out)]
        assert points[0] == points[1], event  # all but the seconds
        assert files(out) == files(whole), event
    assert event > 50


def test_evaluate_and_report(trained, tmp_path):
    arguments, model = trained
    named = ["evaluate", f"--model={model}", arguments[3], "--limit=6", "--batch-size=2", "--method=exact"]
    reports = []
    for event in (NEVER, *events(kills=20)):
        out = tmp_path / str(event)
        was_killed = killed(event, out, *named, f"--out={out}")
        assert not killed(NEVER, out, *named, f"--out={out}")
        reports.append(json.loads((out / "report.json").read_text())["report"])
        assert reports[-1]["ranks"] == reports[0]["ranks"]
        assert reports[-1]["metrics"] == reports[0]["metrics"]
        assert files(out) == ["batches.jsonl", "report.json", "report.txt"]
        if not was_killed and event != NEVER:
            break
    assert event > 5

    page = ["report", f"--evaluation={tmp_path / str(NEVER)}", f"--run={model}"]
    for event in events(kills=100):
        out = tmp_path / f"report{event}"
        was_killed = killed(event, out, *page, f"--out={out / 'report.html'}")
        assert not killed(NEVER, out, *page, f"--out={out / 'report.html'}")
        assert files(out) == ["report.html"]
        if not was_killed:
            break
