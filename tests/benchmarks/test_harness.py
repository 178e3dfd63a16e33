# SPDX-License-Identifier: Apache-2.0
"""What is measured and how it is kept, without a clock."""

import importlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import bench_gpu_train, bench_train, cells, gate, harness, results, shapes, source
from benchmarks.harness import Timing, best, measure, turn
from benchmarks.peers import Contestant, contestants, peer
from patchrec_fast import Packer, SessionPatches, attach

ROOT = Path(__file__).parents[2]


def test_rounds_hold_everyone_in_random_order():
    seen = []
    calls = {name: (lambda round_, name=name: None) for name in "abc"}
    names = {call: name for name, call in calls.items()}

    def sampler(call, round_):
        seen.append((round_, names[call]))
        return 1.0, False

    measure(calls, min_rounds=40, max_rounds=40, sampler=sampler)
    assert [round_ for round_, _ in seen] == sorted(list(range(40)) * 3)
    orders = Counter(tuple(n for r, n in seen if r == k) for k in range(40))
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert len(orders) == 6


def test_ratio_is_the_median_of_ratios_within_rounds():
    """A machine that slows down tenfold half way changes both medians, and no ratio."""
    drift = np.array([1.0, 1.0, 10.0, 10.0, 10.0])
    ours, fast, slow = (Timing(n, s * drift, 0) for n, s in (("o", 1.0), ("f", 2.0), ("s", 9.0)))
    assert best([ours, fast, slow], ["f", "s"]) is fast
    assert ours.times_faster_than(fast) == 2
    uneven = Timing("u", np.array([2.0, 4.0, 6.0]), 0)
    assert Timing("o", np.array([1.0, 1.0, 6.0]), 0).times_faster_than(uneven) == 2


def test_a_disturbed_sample_is_taken_again(monkeypatch):
    """The first two attempts lose half their time to others, the third none."""
    waits = iter([0.0, 1e9, 0.0, 1e9, 0.0, 0.0])
    monkeypatch.setattr(harness, "_waited", lambda: next(waits))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(harness, "flush_cache", lambda: None)
    calls = []
    _, disturbed = harness.sample(calls.append, 7)
    assert calls == [7, 7, 7]
    assert not disturbed
    monkeypatch.setattr(harness, "_waited", iter(range(10**6)).__next__)
    calls.clear()
    _, disturbed = harness.sample(calls.append, 7)
    assert len(calls) == 1 + harness.RETRIES
    assert disturbed


def test_sleeping_counts_as_disturbed_on_one_thread(monkeypatch):
    import time

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(harness, "flush_cache", lambda: None)
    assert harness.sample(lambda round_: time.sleep(0.01), 0)[1]


def test_every_batch_meets_every_table():
    pairs = {(turn(r, 4), turn(r, 2, every=4)) for r in range(8)}
    assert len(pairs) == 8


def test_bytes_are_counted_by_hand():
    """Two rows of three tokens of two ids: 3 gathered + 2 written, and so on."""
    size = shapes.Size(tokens=3, rows=2, distinct=2)
    table = shapes.VOCABULARY
    assert size.table_rows_moved("forward") == 5
    assert size.table_rows_moved("sparse") == 5 + 3 + 2
    assert size.table_rows_moved("accumulate") == 5 + 3 + 4
    assert size.table_rows_moved("dense") == 5 + 3 + table
    assert size.table_rows_moved("dense+sgd") == 5 + 3 + table + 3 * table


def test_the_least_bytes_are_counted_by_hand():
    """Two rows of three tokens of two ids: each row once."""
    size = shapes.Size(tokens=3, rows=2, distinct=2)
    assert size.least_rows_moved("forward") == 2 + 2
    assert size.least_rows_moved("sparse") == 4 + 2 + 2
    assert size.least_rows_moved("accumulate") == 4 + 2 + 4
    assert size.least_rows_moved("dense") == 4 + 2 + shapes.VOCABULARY


@pytest.fixture(scope="module")
def work():
    pytest.importorskip("transformers")
    shape = shapes.Shape("small", "ml-1m", users=2, items=12, group=5)
    batches = shapes.batches(shape, shapes.load_source("ml-1m", None, None), 2)
    vocabulary = max(int(batch.ids.max()) for batch in batches) + 1
    tables = [torch.randn(vocabulary, 8).requires_grad_() for _ in range(2)]
    return cells.Workload(batches, tables)


def test_a_small_vocabulary_is_spread_over_the_table():
    """Same rows, each id renamed one to one, and no longer all at the table's beginning."""
    pytest.importorskip("transformers")
    source = shapes.load_source("ml-1m", None, None)
    packer = Packer(source.catalogue, source.prompt, SessionPatches(5), 12)
    batch = packer.pack([source.dataset.items[:12]])
    ids = shapes.spread(batch, source).ids
    assert ids.dtype == torch.int32
    pairs = set(zip(ids.tolist(), batch.ids.tolist(), strict=True))
    assert len(pairs) == len(ids.unique()) == len(batch.ids.unique())
    assert batch.ids.max() < 3000 < shapes.VOCABULARY * 0.8 < ids.max() < shapes.VOCABULARY


@pytest.mark.parametrize("mode", ["forward", "dense", "dense+sgd", "sparse", "accumulate"])
def test_a_cell(mode, work):
    rows = cells.measure(work, mode, contestants(mode), min_rounds=1, max_rounds=1)
    assert [row["contestant"] for row in rows] == [
        *(each.name for each in contestants(mode)),
        cells.CEILING,
    ]
    assert all(row["median_ms"] > 0 and row["gb_s"] > 0 for row in rows)
    assert rows[-1]["ceiling_share"] == 1
    assert max(row["ratio"] for row in rows[1:-1]) == 1  # the best peer against itself
    assert all(table.grad is None for table in work.tables)


def test_modes_do_what_they_say(work):
    """Each step leaves the gradient of the mode: returned dense or sparse, or added in place."""
    batch, upstream = work.batches[0], work.upstream[0]
    for mode in ("dense", "sparse", "accumulate"):
        for contestant in contestants(mode):
            table = work.tables[0].detach().clone().requires_grad_()
            if mode == "accumulate":
                table.grad = torch.ones_like(table)
            prepared = contestant.prepare(batch, table.dtype)
            got = cells.step(contestant, mode, table, prepared, upstream)
            found = table.grad - 1 if mode == "accumulate" else got
            assert (mode == "sparse") == found.is_sparse
            out = peer("index_add").compress(table, peer("index_add").prepare(batch, table.dtype))
            expected = torch.autograd.grad(out, table, upstream)[0]
            # Two orders of summing some 30 terms of O(1), and the 1 that was added and taken off.
            torch.testing.assert_close(found.to_dense(), expected, rtol=0, atol=1e-5)


def test_a_wrong_peer_is_not_timed(work):
    bag = peer("embedding_bag")
    doubled = Contestant("doubled", bag.prepare, lambda w, p: 2 * bag.compress(w, p))

    def never(round_):
        raise AssertionError("timed")

    with pytest.raises(gate.WrongAnswer, match=r"doubled, output in torch\.float64"):
        cells.measure(work, "forward", [*contestants("forward"), doubled], sampler=never)


def test_results_are_appended_whole(tmp_path):
    results.append("x", [{"name": "a, b", "ms": 1.5}], tmp_path)
    results.append("x", [{"name": "c", "ms": 2}], tmp_path)
    assert (tmp_path / "x.csv").read_text() == 'name,ms\n"a, b",1.5\nc,2\n'
    assert results.read("x", tmp_path)[0] == {"name": "a, b", "ms": "1.5"}
    with pytest.raises(ValueError, match="it has the columns"):
        results.append("x", [{"name": "c", "s": 2}], tmp_path)
    with pytest.raises(ValueError, match="fields not in fieldnames"):
        results.append("x", [{"name": "d", "ms": 2}, {"name": "d", "ms": 2, "s": 1}], tmp_path)
    assert (tmp_path / "x.csv").read_text().count("\n") == 3
    assert [file.name for file in tmp_path.iterdir()] == ["x.csv"]


@pytest.mark.parametrize(
    ("arguments", "collects"),
    [
        (["--benchmark"], "benchmarks/bench_compress.py"),
        ([], "tests/"),
        (["tests/benchmarks", "benchmarks"], "tests/benchmarks"),
        (["--benchmark", "tests/benchmarks"], "tests/benchmarks"),
    ],
    ids=" ".join,
)
def test_the_option(arguments, collects):
    """`pytest --benchmark` takes benchmarks/ in place of tests/, and nothing else takes it."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *arguments]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    tests = [line.split("::")[0] for line in found.splitlines() if "::" in line]
    assert tests
    assert any(test.startswith(collects) for test in tests)
    folder = collects.split("/")[0]
    assert all(test.startswith(folder + "/") for test in tests)


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_every_module_can_be_imported(path):
    """Those too that only a person runs."""
    importlib.import_module(f"benchmarks.{path.stem}")


def test_useful_flops_are_those_that_torch_counts():
    model = bench_train.Model(32, 2, 2).build()
    [batch] = bench_train.batches(source.synthetic(3.94), bench_train.POLICIES["pft-s"], 2, 1)
    attach(model, attention="sdpa")
    with FlopCounterMode(display=False) as counter:
        model(**batch.model_inputs()).loss.backward()
    by_operator = counter.get_flop_counts()["Global"]
    products = sum(count for operator, count in by_operator.items() if "attention" not in str(operator))
    lengths = batch.cu_seqlens.diff().double()
    attention = 3 * 2 * 2 * 32 * float((lengths**2).sum())  # causal: half of two products, forward and backward
    assert abs(bench_gpu_train.flops(model, batch) - attention - products) < 0.01 * products


def test_useful_flops_of_prompts_that_share_rows():
    """They have the fewer rows alone, and each row attends to as many as its position says."""
    model = bench_train.Model(32, 2, 2).build()
    text, data = bench_train.POLICIES["text"], source.synthetic(3.94)
    made = [bench_train.batches(data, text, 2, 1, share=share)[0] for share in (False, True)]
    pairs = [int((2 * batch.position_ids + 1).sum()) for batch in made]
    rows = [len(batch.position_ids) for batch in made]
    assert rows[1] < rows[0]
    body = sum(weight.numel() for weight in model.model.layers.parameters())
    last = sum(weight.numel() for weight in model.model.layers[-1].mlp.parameters())
    fewer = 3 * (2 * (body - last) * (rows[0] - rows[1]) + 2 * 2 * 32 * (pairs[0] - pairs[1]))
    both = [bench_gpu_train.flops(model, batch) for batch in made]
    assert both[0] - both[1] == pytest.approx(fewer, rel=1e-9)
