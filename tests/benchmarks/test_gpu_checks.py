# SPDX-License-Identifier: Apache-2.0
"""What `gpu_smoke` checks is seen when it is wrong; the tables that are made of a record."""

import pytest
import torch

pytest.importorskip("transformers")

from benchmarks import gpu, gpu_checks, gpu_page, results, source
from patchrec_fast.hf import attention


@pytest.fixture(scope="module")
def sample():
    return source.load("ml-1m", None, None)


class _Changed(torch.autograd.Function):
    """The same forward, and a gradient with one element off by one part in 64."""

    @staticmethod
    def forward(ctx, out):
        return out.clone()

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        grad[0] *= 1 + 2**-6
        return grad


def wrapped(monkeypatch, name, change, place=gpu_checks):
    """`change(the function, *its arguments)` in the function's place."""
    inner = getattr(place, name)
    monkeypatch.setattr(place, name, lambda *args, **options: change(inner, *args, **options))


def worst(rows):
    return max(float(row["error"]) for row in rows)


COMPRESS = {
    "output": lambda inner, *args, **options: inner(*args, **options) * (1 + 2**-6),
    "gradient": lambda inner, *args, **options: _Changed.apply(inner(*args, **options)),
    "a row of NaN": lambda inner, *args, **options: inner(*args, **options).index_fill(0, torch.tensor([3]), torch.nan),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("change", COMPRESS)
def test_compress(change, dtype, monkeypatch):
    assert worst(gpu_checks.compress_modes("cpu", dtype, 40, 20)) <= 1
    wrapped(monkeypatch, "compress", COMPRESS[change])
    with pytest.raises(AssertionError, match="times what rounding allows"):
        list(gpu_checks.compress_modes("cpu", dtype, 40, 20))


def test_compress_is_the_same_each_time(monkeypatch):
    calls = []

    def drifting(inner, *args, **options):
        calls.append(None)
        return inner(*args, **options) * (1 + len(calls) * 2**-23)

    wrapped(monkeypatch, "compress", drifting)
    with pytest.raises(AssertionError, match="dense: another gradient at the second call"):
        list(gpu_checks.compress_modes("cpu", torch.float32, 40, 20))


def test_a_large_table(monkeypatch):
    monkeypatch.setattr(gpu_checks, "_LARGE", (2000, 24))
    assert worst(gpu_checks.compress_large("cpu")) <= 1

    def elsewhere(inner, ids, offsets, table, **options):
        return inner(ids, offsets, table, **options) + 0 * table[0] + table[5] - table[5].detach()

    wrapped(monkeypatch, "compress", elsewhere)
    with pytest.raises(AssertionError, match="a gradient of rows that do not occur"):
        list(gpu_checks.compress_large("cpu"))


@pytest.mark.parametrize("rule", ["window", "softcap"])
def test_trees(rule, monkeypatch):
    rules = {"window": 30, "softcap": 2.0}
    assert worst(gpu_checks.trees("cpu", torch.bfloat16, 64, **rules)) <= 1
    wrapped(monkeypatch, "tree_attention", lambda inner, *args, **options: inner(*args, **options | {rule: None}))
    with pytest.raises(AssertionError, match="times what rounding allows"):
        list(gpu_checks.trees("cpu", torch.bfloat16, 64, **rules))


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_log_sums(softcap, monkeypatch):
    assert worst(gpu_checks.log_sums("cpu", torch.bfloat16, softcap)) <= 1
    wrapped(monkeypatch, "log_sum_exp", lambda inner, x, **options: inner(x[:, :-1], **options))
    with pytest.raises(AssertionError, match="times what rounding allows"):
        list(gpu_checks.log_sums("cpu", torch.bfloat16, softcap))


def _top_left(inner, q, k, v, *args, **options):
    """Causality from the first row on, where it should be to the last."""
    queries, keys = ([pair[side] for pair in gpu_checks._SEQUENCES] for side in (0, 1))
    blocks = [torch.ones(n, size).tril() for n, size in zip(queries, keys, strict=True)]
    return gpu_checks._plain(q, k, v, torch.block_diag(*blocks).bool())


VARLEN = {
    "no window": lambda inner, *args, **options: inner(*args, **options | {"window": None}),
    "a window too wide by one": lambda inner, *args, **options: inner(*args, **options | {"window": 21}),
    "aligned to the first row": _top_left,
    "gradient": lambda inner, *args, **options: _Changed.apply(4 * inner(*args, **options)) / 4 * (1 + 2**-5),
}


@pytest.mark.parametrize("change", VARLEN)
def test_varlen(change, monkeypatch):
    assert worst(gpu_checks.varlen("cpu", torch.bfloat16, 64, 20)) <= 1
    wrapped(monkeypatch, "packed_attention", VARLEN[change])
    with pytest.raises(AssertionError, match="times what rounding allows"):
        list(gpu_checks.varlen("cpu", torch.bfloat16, 64, 20))


def test_a_step(sample, monkeypatch):
    assert worst(gpu_checks.step("cpu", sample, share=False, users=1)) <= 1
    wrapped(monkeypatch, "varlen_attention", lambda inner, q, k, v, *rest: inner(q, k, v.roll(1, 0), *rest), attention)
    with pytest.raises(AssertionError, match="times what rounding allows"):
        list(gpu_checks.step("cpu", sample, share=False, users=1))


def test_beams(sample, monkeypatch):
    monkeypatch.setattr(gpu_checks.bench_decode, "BEAMS", 3)
    tiny = gpu_checks.bench_decode.tiny
    monkeypatch.setattr(gpu_checks.bench_decode, "tiny", lambda vocabulary: tiny(vocabulary, quick=True))
    assert worst(gpu_checks.beams("cpu", sample, users=1)) == 0

    def swapped(inner, *args, **options):
        found = inner(*args, **options)
        if "cuda_graphs" in options:
            found.items[-1, [0, 1]] = found.items[-1, [1, 0]]
        return found

    wrapped(monkeypatch, "recommend", swapped, gpu_checks.Recommender)
    with pytest.raises(AssertionError, match="cuda_graphs=False: other titles than the CPU's"):
        list(gpu_checks.beams("cpu", sample, users=1))


GPU = {"time": "2", "torch": "2.0", "commit": "abc", "gpu": "H100", "gpu_gb": "80.0", "driver": "5", "data": "d"}
GPU |= {"triton": "3.9", "transformers": "5.0", "copy_gb_s": "3000.0", "matmul_tflops": "700.0"}
ORIGIN = (
    "*H100, 80.0 GB; driver 5, torch 2.0, Triton 3.9, transformers 5.0; copies 3000.0 GB/s, multiplies 700.0 TFLOP/s; "
    "data d; commit abc.*"
)
CONTESTANTS = {
    "patchrec_fast": {"median_ms": "10", "ratio": "2.0", "gb_s": "1500", "ceiling_share": "0.5", "floor_ms": "4.0"},
    "patchrec_fast, no plan": {"median_ms": "12", "ratio": "1.67"},
    "embedding_bag": {"median_ms": "20", "ratio": "1.0"},
    "index_add": {"status": "left out: RuntimeError: x"},
    "ceiling": {"median_ms": "5", "ratio": "4.0"},
}
TRAIN = {
    "patchrec_fast": {"median_ms": "50", "ratio": "2.0", "mfu": "0.5", "sheet_mfu": "0.4", "peak_mb": "2500"}
    | {"syncs": "0"},
    "padded sdpa": {"status": "out of memory"},
}
DECODE = {
    "patchrec_fast beam": {"median_ms": "40", "prompt_ms": "10", "decode_ms": "30", "syncs": "17"},
    "others": {"median_ms": "17.6", "status": "as published"} | dict.fromkeys(("gpu", "torch"), ""),
}


def record(benchmark, contestants, **cell):
    default = {key: str(value) for key, value in (gpu.CELL | {"contestant": ""} | gpu.MEASURED).items()}
    return [
        default | GPU | {"benchmark": benchmark, "contestant": name} | cell | measured
        for name, measured in contestants.items()
    ]


@pytest.mark.parametrize(
    ("table", "rows", "expected"),
    [
        (
            gpu_page.compress,
            record("compress", CONTESTANTS, setting="A", mode="forward", dtype="bf16"),
            "| H100 | bf16 forward, A | 10 ms | 12 ms | embedding_bag, 20 ms | 2.00x | 1,500 GB/s, 50% | 4 ms |",
        ),
        (
            gpu_page.train,
            record("train", TRAIN, setting="pft-s", mode="stock", model="llama-1b", users="16"),
            "| H100 | llama-1b, 16 users, pft-s | patchrec_fast | 50 ms | 2.00x | 0.5 | 0.4 | 2.5 GB | 0 |",
        ),
        (
            gpu_page.train,
            record("train", TRAIN, setting="pft-s", mode="stock", model="llama-1b", users="16"),
            "| H100 | llama-1b, 16 users, pft-s | padded sdpa (out of memory) |  |  |  |  |  |  |",
        ),
        (
            gpu_page.decode,
            record("decode", DECODE, setting="semantic-ids", mode="beam", model="1.7b", users="1"),
            "|  | 1.7b, 1 users, semantic-ids | others (as published) | 17.6 ms |  |  |  |  |  |",
        ),
        (
            gpu_page.checks,
            record("smoke", {"patchrec_fast": {"error": "0.5"}, "": {"status": "failed: x"}}, setting="tree/bf16/64"),
            "| H100 | tree | 2 | 0.500 | **tree/bf16/64: failed: x** |",
        ),
        (
            gpu_page.ceilings,
            record("smoke", {"torch linear": {"median_ms": "0.2", "tflops": "500"}}, setting="head/odd", rows="320"),
            "| H100 | torch linear, head/odd | 320 | 0.2 ms |  | 500 |  |",
        ),
    ],
)
def test_tables(table, rows, expected, monkeypatch):
    """An older record of the same cell is not shown, nor an older failure; without any, that is said."""
    older = [row | {"time": "1", "median_ms": "1", "ratio": "9.0", "status": "ok"} for row in rows]
    older += record("smoke", {"": {"status": "failed: long ago"}}, setting="tree/bf16/64", time="0")
    monkeypatch.setattr(results, "read", lambda name: older + rows if name == "gpu" else [])
    lines = table().splitlines()
    assert expected in lines
    assert lines[-1] == ORIGIN
    assert "long ago" not in table()
    monkeypatch.setattr(results, "read", lambda name: [])
    assert table() == "*Not measured on a GPU.*"
