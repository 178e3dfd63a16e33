# SPDX-License-Identifier: Apache-2.0
"""The recorded results: one schema in all files, and each row of a commit."""

import csv
import math
import os
import re
import shutil
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from benchmarks import checkout, gpu, harness, machine, results
from benchmarks.harness import Timing

ROOT = Path(__file__).parents[2]
TIMED = sorted(path.stem for path in results.FOLDER.glob("*.csv") if "contestant" in path.read_text().split("\n", 1)[0])
MEASURED = {"rounds", "contended", "ratio", "peak_mb", "gb_s", "ceiling_share", "reused_share", "old_share"}
MEASURED |= {"rows_per_s", "epoch_targets", "epoch_rows", "epoch_s", "floor_rows"}
MEASURED |= set(gpu.MEASURED)
MEASURED |= {f"{name}_{unit}" for name in ("median", "p20", "p80") for unit in ("ms", "per_s")}


def test_the_ratio_is_to_the_best_peer():
    rng = np.random.default_rng(0)
    timings = [Timing(name, rng.uniform(1, 2, 5), 0) for name in ("ours", "a", "b", "part")]
    found = harness.ratios(timings, ["a", "b"])
    best = min(timings[1:3], key=lambda each: np.median(each.seconds))
    assert found == {each.name: np.median(best.seconds / each.seconds) for each in timings}
    assert found[best.name] == 1
    assert all(map(math.isnan, harness.ratios(timings[:1], ["a", "b"]).values()))


@pytest.mark.parametrize("name", TIMED)
def test_columns_mean_the_same_in_all_files(name):
    check_columns(results.FOLDER / f"{name}.csv")


def check_columns(path):
    with path.open(newline="") as file:
        columns = next(csv.reader(file))
    facts = list(machine.facts())
    at = columns.index("contestant")
    assert columns[: len(facts) + 1] == [*facts, "data"]
    assert {"rounds", "contended", "ratio"} <= set(columns[at + 1 :]) <= MEASURED
    assert not MEASURED & set(columns[:at])


@pytest.mark.parametrize("name", TIMED)
def test_each_cell_has_one_reference(name):
    """Its best peer, of ratio 1, or, where ours are compared with each other, one of ours; and no ratio below 0."""
    check_references(results.read(name), alone=name == gpu.TABLE)


def check_references(rows, alone=False):
    """`alone`: a row may be compared with nobody, and says so by its ratio."""
    if alone:
        rows = [row for row in rows if row["ratio"] != "nan"]
    keys = list(rows[0]) if rows else ["contestant"]
    keys = [key for key in keys[: keys.index("contestant")] if key not in ("load", "rows")]
    for _, group in groupby(rows, lambda row: [row[key] for key in keys]):
        cell = list(group)
        peers = [row for row in cell if not row["contestant"].startswith(("patchrec_fast", "ceiling", "part: "))]
        ratios = [float(row["ratio"]) for row in peers or cell]
        assert 1 in ratios
        assert not any(float(row["ratio"]) < 0 for row in cell)
        assert all(float(row["ratio"]) > 0 for row in cell if row["contestant"].startswith("patchrec_fast"))


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A committed one with what `pytest --benchmark --record` asks, and git without a person's settings."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    for name in ("conftest.py", "benchmarks/__init__.py", "benchmarks/checkout.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    bench = "from benchmarks.checkout import commit\ndef test_it():\n    print('measured at', commit())\n"
    (tmp_path / "benchmarks/bench_it.py").write_text(bench)
    (tmp_path / "benchmarks/results").mkdir()
    (tmp_path / "benchmarks/results/it.csv").write_text("ratio\n")
    (tmp_path / ".gitignore").write_text("__pycache__/\n.pytest_cache/\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "config", "user.email", "a@b")
    git(tmp_path, "config", "user.name", "a")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "all")
    return tmp_path


def git(root, *arguments):
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


def record(root, *flags):
    command = [sys.executable, "-m", "pytest", "-p", "no:randomly", "-s", "--benchmark", *flags]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(root)})


def test_a_record_is_of_a_committed_tree(repository):
    done = record(repository, "--record")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"measured at {git(repository, 'rev-parse', '--short', 'HEAD').strip()}\n" in done.stdout


def change(root):
    (root / "conftest.py").open("a").write("\n")
    return "M conftest.py"


def stage(root):
    (root / "conftest.py").open("a").write("\n")
    git(root, "add", "-A")
    return "M  conftest.py"


def add(root):
    (root / "new").mkdir()
    (root / "new/file.py").touch()
    git(root, "config", "status.showUntrackedFiles", "no")  # a person's setting hides nothing
    return "?? new/file.py"


def remove(root):
    (root / ".gitignore").unlink()
    return "D .gitignore"


def results_of_an_earlier_run(root):
    (root / "benchmarks/results/it.csv").open("a").write("1.5\n")
    return "M benchmarks/results/it.csv"


@pytest.mark.parametrize("touch", [change, stage, add, remove, results_of_an_earlier_run])
def test_changes_are_named(touch, repository):
    named = touch(repository)
    with pytest.raises(checkout.Uncommitted, match=re.escape(f"has uncommitted changes: {named}")):
        checkout.require_committed(repository)
    assert checkout.commit(repository).endswith("+")


def test_nothing_is_measured_of_a_changed_tree(repository):
    named = add(repository)
    done = record(repository, "--record")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert named in done.stderr
    assert "measured" not in done.stdout
    assert "measured at" in record(repository).stdout  # without recording it may be


def test_a_run_s_own_results_do_not_stop_it(repository):
    """The next cell is of the same commit, without a plus."""
    checkout.require_committed(repository)
    before = checkout.commit(repository)
    results_of_an_earlier_run(repository)
    assert checkout.commit(repository) == before == git(repository, "rev-parse", "--short", "HEAD").strip()


def test_outside_a_repository_nothing_is_recorded(tmp_path):
    assert checkout.commit(tmp_path) == "none"
    with pytest.raises(checkout.Uncommitted, match="is not a git repository"):
        checkout.require_committed(tmp_path)


def test_a_script_says_why_it_may_not_record(monkeypatch, capsys):
    def refuse():
        raise checkout.Uncommitted("changed")

    monkeypatch.setattr(checkout, "require_committed", refuse)
    assert not checkout.may_record("benchmarks.rows")
    assert capsys.readouterr().err == "benchmarks.rows: changed\n"
    monkeypatch.setattr(checkout, "require_committed", lambda: None)
    assert checkout.may_record("benchmarks.rows")
