# SPDX-License-Identifier: Apache-2.0
"""The scripts for a GPU run to their ends, at sizes of no interest, and write their rows."""

from functools import partial

import pytest

from benchmarks import bench_gpu, bench_gpu_decode, bench_gpu_train, device, gpu_smoke, results, source
from patchrec_fast import SessionPatches
from patchrec_fast.ops.attention import tree
from patchrec_fast.ops.compress import operator, reference


@pytest.fixture(autouse=True)
def _small(pretend, monkeypatch):
    """Few beams, one policy; the operators by torch's own functions, not by the interpreter; nothing that only takes
    time: the device's peaks, its caches, a profile's table."""
    monkeypatch.setattr(operator, "_chosen", lambda impl, device_type, dtype: reference)
    monkeypatch.setattr(tree, "choose", lambda impl, device_type, dtype: "reference")
    monkeypatch.setattr(device, "peaks", lambda place: {"matmul_tflops": 1.0, "copy_gb_s": 1.0})
    monkeypatch.setattr(device, "flush_cache", lambda: None)
    monkeypatch.setattr(device, "profile", lambda call, place, calls=1: str(call(0)))
    monkeypatch.setattr(bench_gpu_train, "synthetic", lambda mean: source.load("ml-1m", None, None))
    monkeypatch.setattr(bench_gpu_decode, "BEAMS", 2)
    monkeypatch.setattr(bench_gpu_decode, "POLICIES", {"SessionPatches(5)": SessionPatches(5)})
    monkeypatch.setattr(bench_gpu_decode.bench_decode, "tiny", partial(bench_gpu_decode.bench_decode.tiny, quick=True))


def rows(module, out, *options):
    assert module.main(["--out", str(out), *options]) == 0
    return results.read("gpu", out)


def test_smoke(tmp_path):
    found = rows(gpu_smoke, tmp_path, "--only", "versions", "varlen", "beams", "waiting-model")
    assert {"versions", "varlen/causal", "beams", "waiting-model"} <= {row["setting"] for row in found}
    assert all(float(row["error"]) <= 1 for row in found if row["setting"] != "versions")


def test_compress(tmp_path):
    found = rows(bench_gpu, tmp_path, "--shapes", "loop", "--width", "16", "--rounds", "1", "--only", "forward")
    assert {"patchrec_fast", "patchrec_fast, no plan"} < {row["contestant"] for row in found}
    assert all(float(row["median_ms"]) > 0 for row in found if row["status"] == "ok" and row["mode"] == "forward")


def test_training(tmp_path):
    options = ("--model", "tiny", "--vocabulary", "2000", "--users", "1", "--rounds", "1", "--only", "1/pft-s/stock")
    found = rows(bench_gpu_train, tmp_path, *options)
    ours = next(row for row in found if row["contestant"] == "patchrec_fast")
    assert float(ours["syncs"]) == 1  # of the reference, which sorts ids
    assert float(ours["median_ms"]) > 0


def test_decoding(tmp_path):
    options = ("--model", "tiny", "--vocabulary", "2000", "--users", "1", "--rounds", "1", "--only", "pft-s/beam")
    found = rows(bench_gpu_decode, tmp_path, *options)
    assert "patchrec_fast beam" in {row["contestant"] for row in found}
    assert all(float(row["median_ms"]) > 0 for row in found)
