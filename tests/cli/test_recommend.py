# SPDX-License-Identifier: Apache-2.0
"""`patchrec-fast recommend`: titles to ids, and the answers of the library."""

import json
import math

import numpy as np
import pytest

from patchrec_fast import data
from patchrec_fast.cli.main import main
from patchrec_fast.cli.recommend import items_of

TITLES = {3: "Heat", 5: "Emma", 8: "emma", 9: "Emma", 11: "The Straße"}


@pytest.fixture
def run(folders, capsys):
    def call(*flags):
        status = main(["recommend", *folders.flags, *map(str, flags)])
        return status, *capsys.readouterr()

    return call


def test_titles():
    assert items_of(["Heat", "Emma", "emma"], TITLES) == [3, 5, 8]
    assert items_of(["HEAT", "EMMA", "the strasse"], TITLES) == [3, 5, 11]


def test_the_nearest_title_is_named():
    with pytest.raises(ValueError, match=r"'Haet'.*did you mean 'Heat'"):
        items_of(["Emma", "Haet"], TITLES)
    with pytest.raises(ValueError, match=r"no title 'xyzzy' in the data$"):
        items_of(["xyzzy"], TITLES)


def test_ids_and_titles_are_the_same_history(run, folders):
    titles = folders.dataset.titles
    _, by_id, _ = run("--items", 7, 1, 9, "--k", 4, "--json")
    _, by_title, _ = run("--history", titles[7], titles[1].upper(), titles[9], "--k", 4, "--json")
    found = json.loads(by_id)
    assert json.loads(by_title) == found
    assert found["history"] == [7, 1, 9]
    answers = found["recommendations"]
    assert len(answers) == 4
    assert [answer["title"] for answer in answers] == [titles[answer["item"]] for answer in answers]
    probabilities = [answer["probability"] for answer in answers]
    assert probabilities == sorted(probabilities, reverse=True)
    assert 0 < math.fsum(probabilities) < 1


def test_the_table(run, folders):
    status, shown, _ = run("--items", 7, "--k", 3)
    assert status == 0
    lines = shown.splitlines()
    assert lines[0] == f"after {folders.dataset.titles[7]}"
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3"]


def test_titles_are_safe_to_print(run, folders, monkeypatch, tmp_path):
    titles = {item: f"\x1b]0;{item}\x07\x9b2J\u202e\nline {item}" for item in range(4)}
    dataset = data.Dataset(np.array([0, 1, 2, 3], np.int32), np.array([0, 4]), titles, {})
    monkeypatch.setattr("patchrec_fast.train.start.open_data", lambda folder: dataset)
    status, shown, told = run("--items", 0, 1, "--k", 3, "--method", "exact")
    assert status == 0
    assert len(shown.splitlines()) == 4
    for line in (shown + told).splitlines():
        assert line.isprintable()
    _, line, _ = run("--items", 0, 1, "--k", 3, "--method", "exact", "--json")
    assert line.rstrip("\n").isprintable()
    assert {answer["title"] for answer in json.loads(line)["recommendations"]} <= set(titles.values())


def test_seen_titles_are_left_out(run):
    _, shown, _ = run("--items", 7, "--k", 300, "--method", "exact", "--exclude-seen", "--json")
    items = {answer["item"] for answer in json.loads(shown)["recommendations"]}
    assert items == {*range(300)} - {7}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--items", 999, 1, 10**9, 999], f"--items: no item 999, {10**9} among the 300 of the data"),
        (["--history", "no such film at all"], "no title"),
        (["--items", 1, "--keep", 2], "which has no keep"),
    ],
)
def test_bad_input_is_one_line(run, flags, message):
    status, _, shown = run(*flags)
    assert status == 1
    assert message in shown
    assert shown.count("\n") == 1


def test_one_of_both(run):
    for flags in ([], ["--items", 1, "--history", "Heat"]):
        with pytest.raises(SystemExit) as stopped:
            run(*flags)
        assert stopped.value.code == 2
