# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/gpu.md: the worst binary of a cell, and predictions that count the bytes."""

import itertools

import numpy as np
import pytest

from benchmarks import gpu_tables, results
from benchmarks.shapes import WIDTH, Size


def rows(name, made, monkeypatch):
    monkeypatch.setattr(results, "read", lambda asked: made if asked == name else [])


def test_a_cell_shows_its_worst_binary(monkeypatch):
    about = {"commit": "abc", "triton": "3.9.0", "kernel": "read_paths", "dtype": "bf16", "d": "64"}
    made = [
        about | {"arch": arch, "registers": r, "shared_bytes": s, "spilled_bytes": spilled, "blocks": blocks}
        for arch, r, s, spilled, blocks in (
            ("sm_80", "90", "1024", "0", "7"),
            ("sm_80", "128", "0", "0", "5"),
            ("sm_90", "255", "2048", "16", "2"),
        )
    ]
    rows("binaries", made, monkeypatch)
    lines = gpu_tables.binaries().splitlines()
    assert lines[0] == "|  |  | columns | sm_80 | sm_90 |"
    assert lines[2] == "| `read_paths` | bf16 | 64 | 128, 1 KB, 5 | 255, 2 KB, 2, **16 B** |"
    assert lines[-1] == "*triton 3.9.0; commits abc.*"
    rows("binaries", [], monkeypatch)
    assert gpu_tables.binaries() == "*Not recorded yet.*"


def test_predictions_stand_beside_empty_columns(monkeypatch):
    about = {"commit": "abc", "card": "a card", "arch": "sm_80", "gb_s": "2039"}
    made = [about | {"work": f"compress: {name}", "low_us": "1.24", "high_us": "20.06"} for name in "AB"]
    rows("predictions", [*made, about | {"work": "other", "low_us": "7", "high_us": "8"}], monkeypatch)
    lines = gpu_tables.predicted("compress").splitlines()
    assert lines[0] == "|  | GB/s, data sheet | A, predicted µs | measured | B, predicted µs | measured |"
    assert lines[2] == "| a card (sm_80) | 2,039 | 1.2 to 20.1 |  | 1.2 to 20.1 |  |"


def test_the_record_is_bytes_over_bandwidth():
    found = results.read("predictions")
    assert {row["arch"] for row in found} == {"sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942"}
    for row in found:
        for end in ("low", "high"):
            microseconds = int(row[f"{end}_bytes"]) / int(row["gb_s"]) / 1e3
            assert float(row[f"{end}_us"]) == pytest.approx(microseconds, abs=0.006)
        assert int(row["low_bytes"]) <= int(row["high_bytes"])


def test_compress_counts_each_row_it_moves():
    """Against a walk over the rows: what is in a cache of any size, or in none, is not read again."""
    predictions = pytest.importorskip("benchmarks.predictions", reason="needs Triton", exc_type=ImportError)
    rng = np.random.default_rng(0)
    ids, offsets = rng.integers(0, 30, 200), np.sort(np.concatenate([[0, 200], rng.integers(0, 201, 40)]))
    forward, backward = [], []  # rows moved, in order
    for row, (first, last) in enumerate(itertools.pairwise(offsets.tolist())):
        forward += [("table", int(i)) for i in ids[first:last]] + [("out", row)]
        backward += [("grad", row)] * (last - first)
    into = [("into", int(i)) for i in np.unique(ids)]
    read = set(backward)
    size = Size(len(ids), len(offsets) - 1, len(np.unique(ids)))
    found = predictions.compress(size, 7, "forward")
    assert (found.low - 7, found.high - 7) == (len(set(forward)) * WIDTH * 2, len(forward) * WIDTH * 2)
    found = predictions.compress(size, 7, "accumulate")
    empty = size.rows - len(read)  # rows without tokens: counted, for they are few
    assert found.low - 7 == (len(set(forward)) + len(read) + empty + 2 * len(into)) * WIDTH * 2
    assert found.high - 7 == (len(forward) + len(backward) + 2 * len(into)) * WIDTH * 2


def test_a_step_reads_each_prompt_once_at_best():
    predictions = pytest.importorskip("benchmarks.predictions", reason="needs Triton", exc_type=ImportError)
    a100, h100 = (next(card for card in predictions.CARDS if card.name.startswith(name)) for name in ("A100", "H100"))
    step = predictions.Step(512, users=2, beams=20, path=3)
    keys_and_values = 2 * 8 * 64 * 2  # of a row
    rest = 40 * 3 * keys_and_values + 3 * 40 * 32 * 64 * 2
    # 80 queries are two tiles of 64 on sm_80, and one of 128 on sm_90; 8 tiles of 64 keys, a split each.
    parts = 2 * 8 * 40 * 32 * 65 * 4
    prompts = 2 * 512 * keys_and_values
    found = step.bytes(a100)
    assert (found.low, found.high) == (prompts + rest + parts * 4 // 8, 2 * prompts + rest + parts * 4 // 8)
    found = step.bytes(h100)
    assert (found.low, found.high) == (prompts + rest + parts, prompts + rest + parts)
