# SPDX-License-Identifier: Apache-2.0
"""docs/benchmarks.md and docs/gpu.md are what the records say, and the README claims nothing else."""

import re
from pathlib import Path

import pytest

from benchmarks import page, results

TEXT = "".join(path.read_text(encoding="utf-8") for path in page.PAGES)
README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_page_is_current():
    assert page.made(TEXT) == TEXT, "python -m benchmarks.page makes the tables anew"
    assert set(re.findall(r"<!-- table: (.+?) -->", TEXT)) == set(page.TABLES)
    assert TEXT.count("<!-- table: ") == TEXT.count("<!-- end -->") == len(page.TABLES)


@pytest.mark.parametrize("name", ["compress", "decode", "packing", "rows", "train"])
def test_another_ratio_makes_another_page(name, monkeypatch):
    """The last record of each cell counts: its ratios, ten times as high, are all in the page."""
    read = results.read

    def changed(asked):
        rows = read(asked)
        return [row | {"ratio": str(10 * float(row["ratio"]))} for row in rows] if asked == name else rows

    monkeypatch.setattr(results, "read", changed)
    before, after = TEXT.splitlines(), page.made(TEXT).splitlines()
    assert len(before) == len(after)
    assert sum(one != other for one, other in zip(before, after, strict=True)) >= 3


def test_losing_cells_are_shown_and_marked():
    found = [row for row in page._compress("1") if row["contestant"] == "patchrec_fast" and float(row["ratio"]) < 1]
    assert found
    for row in found:
        assert f"**{float(row['ratio']):.2f}x**" in TEXT


ORIGIN = {"time": "2", "machine": "a machine", "cpu": "its cpu", "torch": "2.0", "commit": "abc"}
MADE_UP = {
    "epoch": (
        page.epoch,
        [
            {"model": "tiny", "stage": "text", "contestant": name, "epoch_rows": rows, "floor_rows": "2000000"}
            | {"rows_per_s": "5000", "median_per_s": speed, "ratio": ratio, "epoch_s": "7200", "peak_mb": "1500"}
            for name, rows, speed, ratio in (
                ("one prompt a target", "12000000", "10", "1.0"),
                ("by user", "3000000", "9", "0.9"),
            )
        ],
        [
            "| hidden 128, 4 layers, text | by user | 3.0 M (4.00x) | 1.50x | 5,000 | 9.0 | **0.90x** | 2.0 h "
            "| 1.5 GB |",
        ],
    ),
    "segments": (
        page.segments,
        [
            {"shape": "s", "mode": "forward", "rows": "9", "contestant": name, "median_ms": ms, "peak_mb": "7"}
            | {"ratio": ratio}
            for name, ms, ratio in (("patchrec_fast", "20.5", "0.5"), ("varlen, gathered keys", "10", "1.0"))
        ],
        ["| s | forward | 9 | 20.5 ms, 7 MB | 10 ms, 7 MB |  | **0.50x** |"],
    ),
    "visits": (
        page.visits,
        [
            {
                "policy": "P(1)",
                "items": "700",
                "rows": "300",
                "contestant": name,
                "median_ms": ms,
                "ratio": ratio,
                "reused_share": "0.9",
                "old_share": "0.95",
            }
            for name, ms, ratio in (("kept prompts", "50", "2.0"), ("fresh call", "100", "1.0"))
        ],
        ["| `P(1)` | 700 | 300 | 90.0% of 95.0% | 50 ms | 100 ms | 2.00x |"],
    ),
    "by_user": (
        page.by_user,
        [
            {"stage": stage, "arm": arm, "seed": seed, "steps": "747", "seconds": "60.4", "val_loss": loss}
            | {"metric": metric, "value": "0.125", "low": "0.1", "high": "0.15", "difference": difference}
            | {"p_value": "0.5"}
            for stage, arm, seed, loss, difference in (
                ("text", "user, 16", "0", "1.4", ""),
                ("text", "user, 16", "1", "1.5", ""),
                ("text", "user, 16", "all", "1.45", "-0.01"),
                ("", "popularity", "", "", ""),
            )
            for metric in ("HR@5", "HR@10", "HR@20", "NDCG@20")
        ],
        [
            f"| text | user, 16 | 747 | 60 s | 1.400 to 1.500 |{' .1250 [.100, .150] |' * 4} -0.0100 (p = 0.5) |",
            f"|  | popularity |  |  |  |{' .1250 [.100, .150] |' * 4}  |",
        ],
    ),
    "noise": (
        page.noise,
        [
            {"targets": "64", "run_targets": kind, "noise": noise, "noise_error": "0.1", "times_single": ratio}
            for kind, noise, ratio in (("1", "3.2", "1.0"), ("all", "4.8", "1.5"))
        ],
        ["| targets of a step | single prompts | all of a user |", "| 64 | 3.2 ± 0.1 (1.00x) | 4.8 ± 0.1 (1.50x) |"],
    ),
}


@pytest.mark.parametrize("name", MADE_UP)
def test_tables_of_made_up_records(name, monkeypatch):
    """An older record of the same cell is not shown; no record is no table, and no error."""
    table, rows, expected = MADE_UP[name]
    rows = [row | ORIGIN for row in rows]
    older = (
        [] if name in ("by_user", "noise") else [row | {"time": "1", "median_ms": "1", "ratio": "3"} for row in rows]
    )
    monkeypatch.setattr(results, "read", lambda asked: older + rows if asked == name else [])
    lines = table().splitlines()
    for line in expected:
        assert line in lines
    assert lines[-1] == "*its cpu, a machine; torch 2.0; commits abc.*"
    monkeypatch.setattr(results, "read", lambda asked: [])
    assert table() == "*Not recorded yet.*"


def test_compress_is_of_the_cpu_measured_last(monkeypatch):
    recorded = results.read("compress")
    new = [row | {"cpu": "a new cpu", "ratio": "77.0"} for row in recorded if row["cpu"] == recorded[-1]["cpu"]]
    monkeypatch.setattr(results, "read", lambda asked: recorded + new)
    made = page.compress("1")
    assert made.splitlines()[-1].startswith("*a new cpu, ")
    assert "77.0x" in made
    assert recorded[-1]["cpu"] not in made


def test_an_unknown_table_is_refused():
    with pytest.raises(ValueError, match=r"table: expected one of rows, .*, got 'nonsense'"):
        page.made("<!-- table: nonsense -->\n<!-- end -->\n")


def test_prose_is_left_alone():
    assert page.made("a\n<!-- table -->\n| 1 |\n") == "a\n<!-- table -->\n| 1 |\n"


def test_the_readme_claims_what_the_page_shows():
    assert len(README.splitlines()) <= 120
    claims = re.search(r"## Measured\n(.*?)\n## ", README, re.DOTALL)[1]
    measured = re.findall(r"\d+\.\d+x|\.\d{4}|\d\.\d(?= GB)|(?<=place of )\d\.\d", claims)
    assert len(measured) >= 8
    for number in measured:
        assert number in TEXT, f"{number} is not in docs/benchmarks.md"
