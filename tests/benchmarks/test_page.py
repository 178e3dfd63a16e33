# SPDX-License-Identifier: Apache-2.0
"""docs/benchmarks.md is what the records say, and the README claims nothing else."""

import re
from pathlib import Path

import pytest

from benchmarks import page, results

TEXT = page.PAGE.read_text(encoding="utf-8")
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
