# SPDX-License-Identifier: Apache-2.0
"""The scripts for a GPU, end to end on the CPU at toy sizes, and what they share."""

import argparse
import importlib
import os
import re
import shlex
import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from benchmarks import bench_gpu, bench_gpu_decode, bench_gpu_train, device, gpu, gpu_smoke, results, source
from benchmarks.gpu import Bench, Part
from patchrec_fast import SessionPatches
from tests.benchmarks.test_results import check_columns, check_references

ROOT = Path(__file__).parents[2]
SAFE = re.compile(r"[A-Za-z0-9._-]+")


def run(module, out, *options):
    return module.main(["--device", "cpu", "--out", str(out), *options])


def rows_of(out):
    """The table, whose columns and references are those of all records; and the files' names are safe."""
    check_columns(out / "gpu.csv")
    found = results.read("gpu", out)
    check_references(found, alone=True)
    assert set(found[0]) == {*gpu.machine.facts(), *gpu.CELL, "contestant", *gpu.MEASURED}
    assert all(SAFE.fullmatch(path.name) for path in out.rglob("*"))
    assert len(list(out.iterdir())) <= 3
    return found


def test_smoke(tmp_path, capsys):
    assert run(gpu_smoke, tmp_path, "--tiny") == 0
    found = rows_of(tmp_path)
    assert {row["setting"].split("/")[0] for row in found} == {"versions", "compress", "tree", "log-sum-exp", "varlen"}
    assert all(0 <= float(row["error"]) <= 1 for row in found if row["setting"] != "versions")
    assert sum(row["setting"] == "compress/fp16/2048" for row in found) == 6  # modes, with a plan and without
    assert "tree_attention on cpu" in (tmp_path / "smoke.txt").read_text()
    assert "compress/bf16/40" in capsys.readouterr().out


def test_smoke_of_models_and_times(tmp_path):
    assert run(gpu_smoke, tmp_path, "--only", "step/shared", "ceilings", "head/odd", "logsumexp") == 0
    rows = rows_of(tmp_path)
    assert [row["contestant"] for row in rows if row["setting"] == "logsumexp"] == ["patchrec_fast", "torch logsumexp"]
    found = {row["setting"]: row for row in rows}
    assert 0 < float(found["step/shared"]["error"]) <= 1
    assert float(found["logsumexp"]["floor_ms"]) > 0
    assert float(found["head/odd"]["median_ms"]) > 0


def test_compress(tmp_path):
    assert run(bench_gpu, tmp_path, "--shapes", "loop", "--width", "16", "--rounds", "1") == 0
    found = rows_of(tmp_path)
    assert [row["mode"] for row in found if row["contestant"] == "patchrec_fast"] == list(bench_gpu._MODES)
    assert all(float(row["floor_ms"]) > 0 for row in found if row["contestant"] == "patchrec_fast, no plan")
    assert "left out: NotImplementedError" in next(row["status"] for row in found if row["contestant"] == "sparse.mm")
    assert "forward" in (tmp_path / "compress.txt").read_text()


@pytest.fixture
def small(monkeypatch):
    """The generated sample in place of ids of Llama-3's vocabulary."""
    monkeypatch.setattr(bench_gpu_train, "synthetic", lambda mean: source.load("ml-1m", None, None))


def test_train(tmp_path, small):
    options = ("--model", "tiny", "--vocabulary", "2000", "--users", "1", "--rounds", "1", "--sheet-tflops", "2")
    assert run(bench_gpu_train, tmp_path, *options, "--only", "1/pft-s", "1/text/stock") == 0
    found = rows_of(tmp_path)
    for stage in ("pft-s", "text"):
        own = {row["contestant"]: row for row in found if (row["setting"], row["mode"]) == (stage, "stock")}
        assert list(own) == ["patchrec_fast", "padded sdpa", "packed sdpa"]
        ours = own["patchrec_fast"]
        share = float(ours["mfu"]) / float(ours["sheet_mfu"])
        assert share == pytest.approx(2 / float(ours["matmul_tflops"]), rel=1e-2)
        losses = [float(row["loss"]) for row in own.values()]
        assert max(losses) - min(losses) < 0.02 * max(losses)
    assert {row["contestant"] for row in found if row["mode"] == "loop"} == {"patchrec_fast", "per-item loop"}


def test_decode(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_gpu_decode, "SEMANTIC_BEAMS", 6)
    monkeypatch.setattr(bench_gpu_decode, "SEMANTIC_ROWS", 90)
    monkeypatch.setattr(bench_gpu_decode.semantic_ids, "VOCABULARY", 4000)
    monkeypatch.setattr(bench_gpu_decode, "BEAMS", 4)
    monkeypatch.setattr(bench_gpu_decode, "POLICIES", {"SessionPatches(5)": SessionPatches(5)})
    monkeypatch.setattr(bench_gpu_decode.bench_decode, "tiny", partial(bench_gpu_decode.bench_decode.tiny, quick=True))
    options = ("--model", "tiny", "--semantic-model", "tiny", "--users", "1", "--long-users", "1", "--rounds", "1")
    parts = ("agree", "pft-s", "semantic-ids")
    assert run(bench_gpu_decode, tmp_path, *options, "--vocabulary", "2000", "--only", *parts) == 0
    found = rows_of(tmp_path)
    own = {(row["setting"], row["mode"], row["contestant"]): row for row in found}
    ours = "patchrec_fast beam, no graph"
    assert float(own["pft-s", "beam", "transformers generate"]["ratio"]) == 1
    assert float(own["pft-s", "diverse", "released protocol"]["ratio"]) == 1
    assert own["semantic-ids", "beam", ours]["rows"] == "90"
    assert float(own["pft-s", "beam", ours]["prompt_ms"]) > 0
    [published] = [row for row in found if row["gpu"] == "NVIDIA H100"]
    assert (published["median_ms"], published["ratio"], published["torch"]) == ("17.6", "nan", "")
    assert "as published" in published["status"]


def test_a_prompt_of_semantic_ids_has_the_rows_asked_for():
    for rows in (78, 79, 100, 1000):
        packer, history = bench_gpu_decode.semantic_ids.packer_and_history(rows, items=5000, codebook=64)
        batch = packer.pack([history])
        assert len(batch.position_ids) == rows
        assert int(batch.ids.max()) < bench_gpu_decode.semantic_ids.VOCABULARY
    with pytest.raises(ValueError, match="rows: expected at least 78, got 77"):
        bench_gpu_decode.semantic_ids.packer_and_history(77)


@pytest.mark.parametrize("module", [bench_gpu_train, bench_gpu_decode])
def test_a_vocabulary_below_the_prompts_is_refused(module, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(module, tmp_path, "--vocabulary", "1000")
    assert "--vocabulary: expected at least the " in capsys.readouterr().err


def test_a_part_that_fails_does_not_end_the_run(tmp_path, monkeypatch, capsys):
    measure = bench_gpu.measure

    def broken(bench, mode, rounds, work):
        rows = measure(bench, mode, rounds, work)
        yield next(rows)
        if mode == "forward":
            raise RuntimeError("injected\nhere")
        yield from rows

    monkeypatch.setattr(bench_gpu, "measure", broken)
    options = ("--shapes", "loop", "--width", "16", "--rounds", "1", "--modes", "forward,sparse", "--only", "forward")
    assert run(bench_gpu, tmp_path, *options, "sparse") == 1
    found = results.read("gpu", tmp_path)
    assert [row["mode"] for row in found] == ["forward", "", *["sparse"] * (len(found) - 2)]
    assert len(found) > 4
    assert (found[1]["setting"], found[1]["status"]) == ("forward/bf16/loop", "failed: RuntimeError: injected here")
    assert "forward/bf16/loop FAILED: RuntimeError: injected here" in capsys.readouterr().out
    assert 'raise RuntimeError("injected' in (tmp_path / "errors.txt").read_text()


def made(out, *options, clock=None, **known):
    """A bench without a script."""
    parser = argparse.ArgumentParser("python -m benchmarks.none")
    gpu.arguments(parser, minutes=2)
    found = parser.parse_args(["--device", "cpu", "--out", str(out), *options])
    return Bench("none", found, peaks=False, **({"clock": clock} if clock else {}), **known)


def test_no_part_begins_after_the_minutes(tmp_path, capsys):
    now = [1000.0]
    bench = made(tmp_path, "--minutes", "1.5", clock=lambda: now[0])
    seen = []

    def part(name, seconds):
        def measure():
            assert bench.seconds_left() == max(0, 90 - (now[0] - 1000))
            seen.append(name)
            now[0] += seconds
            return [{"contestant": name}]

        return Part(name, measure)

    assert bench.run([part("a", 40), part("b", 45), part("c", 200), part("d", 1), part("e", 1)]) == 0
    assert seen == ["a", "b", "c"]
    assert "--minutes 1.5: no time for d, e" in capsys.readouterr().out
    assert [row["contestant"] for row in results.read("gpu", tmp_path)] == seen


@pytest.mark.parametrize("module", [gpu_smoke, bench_gpu, bench_gpu_train, bench_gpu_decode])
def test_scripts_have_the_budget(module, tmp_path, capsys):
    assert run(module, tmp_path, "--minutes", "0") == 0
    assert "--minutes 0: no time for " in capsys.readouterr().out
    assert not (tmp_path / "gpu.csv").exists()


def test_rows_are_there_as_they_come(tmp_path):
    bench, counts = made(tmp_path), []

    def measure():
        for number in range(3):
            counts.append(len(results.read("gpu", tmp_path)))
            yield {"contestant": str(number)}

    bench.run([Part("a", measure), Part("b", measure)])
    assert counts == [0, 1, 2, 3, 4, 5]


def test_parts_are_chosen_by_the_beginnings_of_their_names(tmp_path):
    seen = []
    parts = [Part(name, lambda name=name: seen.append(name) or []) for name in ("a/b", "a/bc", "a/b/d", "e")]
    assert made(tmp_path, "--only", "e", "a/b").run(parts) == 0
    assert seen == ["a/b", "a/b/d", "e"]
    with pytest.raises(ValueError, match="--only: expected some of a/b, a/bc, a/b/d, e, got x"):
        made(tmp_path, "--only", "e", "x").run(parts)


@pytest.mark.parametrize("name", ["a b", "text,150", "Text()", "", "ä"])
def test_names_of_parts_are_safe(name, tmp_path):
    with pytest.raises(ValueError, match="parts: expected names of letters, digits"):
        made(tmp_path).run([Part(name, list)])


def test_an_unknown_column_is_a_failure(tmp_path, capsys):
    assert made(tmp_path).run([Part("a", lambda: [{"speed": 1}])]) == 1
    assert "the table has no columns ['speed']" in capsys.readouterr().out


def test_what_is_left_goes_on_in_a_new_process_where_the_device_is_lost(tmp_path, monkeypatch):
    bench, started = made(tmp_path, clock=lambda: 0.0), []
    bench.device = "cuda"
    monkeypatch.setattr(device, "alive", lambda place: False)
    monkeypatch.setattr(os, "execv", lambda program, command: started.append(command))
    monkeypatch.setattr("sys.argv", ["x", "--out", "o"])

    def broken():
        raise RuntimeError("illegal memory access")

    bench.run([Part("a", broken), Part("b", list), Part("c", list)])
    assert started[0][1:] == [
        "-m",
        "benchmarks.none",
        "--out",
        "o",
        "--failed",
        "--minutes",
        "2.000",
        "--only",
        "b",
        "c",
    ]
    assert made(tmp_path, "--failed").run([Part("b", list)]) == 1


def test_a_run_is_recorded_of_a_commit_and_a_gpu_alone(tmp_path):
    bench, folder = made(tmp_path / "run"), tmp_path / "kept"
    bench.facts |= {"commit": "abc", "gpu_gb": 80.0}
    bench.append({"contestant": "x"})
    path = tmp_path / "run" / "gpu.csv"
    assert gpu.record(path, folder) == gpu.record(path, folder) == 1
    assert len(results.read("gpu", folder)) == 2
    for facts, message in (
        ({"commit": "abc+"}, r"rows of a commit, got some of abc\+"),
        ({"commit": "none"}, "rows of a commit, got some of none"),
        ({"commit": "abc", "gpu_gb": 0.0}, "rows of a GPU"),
    ):
        bench.facts |= facts
        bench.out = tmp_path / message[-4:]
        bench.append({"contestant": "x"})
        with pytest.raises(ValueError, match=message):
            gpu.record(bench.out / "gpu.csv", folder)
    with pytest.raises(FileNotFoundError, match="no such file, expected a table"):
        gpu.record(tmp_path / "none.csv", folder)
    assert len(results.read("gpu", folder)) == 2


def test_the_commit_is_told_where_there_is_no_repository(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu.machine, "commit", lambda: "none")
    assert made(tmp_path, "--commit", "abc").facts["commit"] == "abc"
    monkeypatch.setattr(gpu.machine, "commit", lambda: "def")
    assert made(tmp_path, "--commit", "abc").facts["commit"] == "def"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989), ("NVIDIA A100-SXM4-40GB", 312)],
)
def test_data_sheets(name, expected):
    assert device.sheet_tflops(name) == expected
    assert device.sheet_tflops("NVIDIA GeForce") != device.sheet_tflops("NVIDIA GeForce")  # NaN


@pytest.mark.parametrize("number", ["1", "2", "3"])
def test_the_three_commands(number, tmp_path, monkeypatch):
    """Each takes less than ten minutes at most, and its lines are ones that the programs take."""
    for tool in ("compute-sanitizer", "ncu"):
        (tmp_path / tool).write_text("#!/bin/sh\n")
        (tmp_path / tool).chmod(0o755)
    place = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHON": "true",
        "DATA": "d a",
        "TOKENIZER": "t",
        "COMMIT": "c",
    }
    command = ["bash", "benchmarks/gpu.sh", number, str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | place, capture_output=True, text=True, check=True)
    lines = [shlex.split(line.replace("d a", "d_a"))[1:] for line in done.stdout.splitlines() if line.startswith("+ ")]
    assert sum(int(line[0]) for line in lines) <= 600
    monkeypatch.setattr(gpu, "missing", lambda parser, options: True)
    monkeypatch.setattr("patchrec_fast.cli.folders.check_folder", lambda *_, **__: None)  # of another machine
    for line in lines:
        module, *options = line[line.index("-m") + 1 :]
        if module == "patchrec_fast.cli":
            from patchrec_fast.cli.main import parser_of

            parser_of(options[0]).parse_args(options[1:])
        else:
            assert importlib.import_module(module).main(options) == 2
            assert "--out" in options
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"log-{number}.txt"]
    place["PYTHON"] = "false"
    assert subprocess.run(command, cwd=ROOT, env=os.environ | place, capture_output=True).returncode == 1


def test_without_a_gpu_nothing_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for module in (gpu_smoke, bench_gpu, bench_gpu_train, bench_gpu_decode):
        assert module.main(["--out", str(tmp_path / "out")]) == 2
        assert "torch sees no CUDA or ROCm device" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
