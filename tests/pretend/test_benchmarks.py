# SPDX-License-Identifier: Apache-2.0
"""The GPU benchmarks run to their ends, at sizes of no interest, and write their rows."""

import csv
import sys

import pytest

from benchmarks import bench_gpu, bench_gpu_decode, bench_gpu_train, shapes, source
from patchrec_fast.ops.attention import tree
from patchrec_fast.ops.compress import operator, reference


@pytest.fixture(autouse=True)
def _small(pretend, monkeypatch):
    """A short vocabulary, one policy, few beams; the operators by torch's own functions, not by the interpreter."""
    monkeypatch.setattr(operator, "_chosen", lambda impl, device_type, dtype: reference)
    monkeypatch.setattr(tree, "choose", lambda impl, device_type, dtype: "reference")
    few = {"pft-s": bench_gpu_train.POLICIES["pft-s"]}
    for module in (bench_gpu_train, bench_gpu_decode):
        monkeypatch.setattr(module, "POLICIES", few)
        monkeypatch.setattr(module, "profile", lambda call: str(call(0)))  # its table takes a minute to add up
    monkeypatch.setattr(bench_gpu_train, "synthetic", lambda tokens: source.load("ml-1m", None, None))
    monkeypatch.setattr(bench_gpu_decode, "SETTINGS", bench_gpu_decode.SETTINGS[2:3])
    monkeypatch.setattr(bench_gpu_decode, "BEAMS", 2)
    monkeypatch.setattr(bench_gpu, "SHAPES", {"A16": shapes.Shape("A16", "ml-1m", users=1, items=6, group=2)})
    monkeypatch.setattr(bench_gpu, "make_tables", lambda dtype, device: shapes.tables(dtype, 8, device))
    monkeypatch.setattr(bench_gpu, "_flush", lambda: None)


def rows(module, out, monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", [module.__name__, "--out", str(out), *options])
    assert module.main() == 0
    (path,) = out.glob("*.csv")
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_compress(tmp_path, monkeypatch):
    found = rows(bench_gpu, tmp_path, monkeypatch, "--shapes", "A16", "--modes", "forward")
    assert {"patchrec_fast", "patchrec_fast, no plan"} < {row["contestant"] for row in found}
    assert all(float(row["median_ms"]) > 0 for row in found)


def test_training(tmp_path, monkeypatch):
    found = rows(bench_gpu_train, tmp_path, monkeypatch, "--model", "tiny", "--users", "1")
    assert [row["contestant"] for row in found] == list(dict.fromkeys(row["contestant"] for row in found))
    assert float(found[0]["syncs"]) >= 0
    assert all(float(row["median_ms"]) > 0 for row in found)


def test_decoding(tmp_path, monkeypatch):
    options = ("--model", "tiny", "--users", "1", "--long-users", "1", "--rounds", "1", "--peers", "none")
    found = rows(bench_gpu_decode, tmp_path, monkeypatch, *options)
    assert "patchrec_fast beam" in {row["contestant"] for row in found}
    assert all(float(row["median_ms"]) > 0 for row in found)
