# SPDX-License-Identifier: Apache-2.0
"""The recorded results: one schema in all files."""

import csv
import math
from itertools import groupby

import numpy as np
import pytest

from benchmarks import harness, machine, results
from benchmarks.harness import Timing

TIMED = sorted(path.stem for path in results.FOLDER.glob("*.csv") if "contestant" in path.read_text().split("\n", 1)[0])
MEASURED = {"rounds", "contended", "ratio", "peak_mb", "gb_s", "ceiling_share"}
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
    with (results.FOLDER / f"{name}.csv").open(newline="") as file:
        columns = next(csv.reader(file))
    facts = list(machine.facts())
    at = columns.index("contestant")
    assert columns[: len(facts) + 1] == [*facts, "data"]
    assert {"rounds", "contended", "ratio"} <= set(columns[at + 1 :]) <= MEASURED
    assert not MEASURED & set(columns[:at])


@pytest.mark.parametrize("name", TIMED)
def test_each_cell_has_one_reference(name):
    """Its best peer, of ratio 1, or, where ours are compared with each other, one of ours; and no ratio below 0."""
    rows = results.read(name)
    keys = list(rows[0])
    keys = [key for key in keys[: keys.index("contestant")] if key not in ("load", "rows")]
    for _, group in groupby(rows, lambda row: [row[key] for key in keys]):
        cell = list(group)
        peers = [row for row in cell if not row["contestant"].startswith(("patchrec_fast", "ceiling", "part: "))]
        ratios = [float(row["ratio"]) for row in peers or cell]
        assert 1 in ratios
        assert not any(float(row["ratio"]) < 0 for row in cell)
        assert all(float(row["ratio"]) > 0 for row in cell if row["contestant"].startswith("patchrec_fast"))
