# SPDX-License-Identifier: Apache-2.0
"""`patchrec-fast bench`: what it runs, and where it cannot."""

import subprocess
import sys
from pathlib import Path

import pytest

from patchrec_fast.cli import bench
from patchrec_fast.cli.main import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def started(monkeypatch):
    """The commands that would have been run; each ends with 5."""
    pytest.importorskip("pytest_benchmark")
    seen = []

    def run(command, cwd):
        seen.append((command, cwd))
        return subprocess.CompletedProcess(command, 5)

    monkeypatch.setattr(subprocess, "run", run)
    return seen


def test_it_runs_the_repository_s_benchmarks(started, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "compress", "--quick", "--threads", "1", "--data", "here"]) == 5
    ((command, cwd),) = started
    assert cwd == ROOT
    assert command[:4] == [sys.executable, "-m", "pytest", "--benchmark"]
    assert set(command[4:]) == {"--quick", "--threads=1", f"--data={tmp_path / 'here'}", "benchmarks/bench_compress.py"}


@pytest.mark.parametrize("name", ["compres", "gpu"])  # the second is no pytest file
def test_an_unknown_benchmark(started, capsys, name):
    assert main(["bench", name]) == 1
    assert "expected one of compress" in capsys.readouterr().err
    assert not started


def test_an_installed_package_has_none(started, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench.patchrec_fast, "__file__", str(tmp_path / "site-packages/patchrec_fast/__init__.py"))
    monkeypatch.chdir(tmp_path)
    assert main(["bench"]) == 1
    assert "clone the repository" in capsys.readouterr().err
    monkeypatch.chdir(ROOT)  # inside a clone too: what lies in the working directory is not run
    assert main(["bench"]) == 1
    assert not started


def test_a_neighbour_s_benchmarks_are_not_ours(monkeypatch, tmp_path):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "conftest.py").touch()
    monkeypatch.setattr(bench.patchrec_fast, "__file__", str(tmp_path / "patchrec_fast/__init__.py"))
    assert bench.checkout() is None
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "another"\n')
    assert bench.checkout() is None
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "patchrec_fast"\n')
    assert bench.checkout() == tmp_path
