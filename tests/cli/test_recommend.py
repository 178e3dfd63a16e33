# SPDX-License-Identifier: Apache-2.0
"""`patchrec-fast recommend`: titles to ids, and the answers of the library."""

import csv
import dataclasses
import json
import math

import numpy as np
import pytest

from patchrec_fast import data
from patchrec_fast.cli.main import main


@pytest.fixture
def run(folders, capsys):
    def call(*flags):
        status = main(["recommend", *folders.flags, *map(str, flags)])
        return status, *capsys.readouterr()

    return call


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
    assert lines[1] == "     probability among the titles, title (id)"
    assert [line.split()[0] for line in lines[2:]] == ["1", "2", "3"]
    assert all(line.endswith(")") for line in lines[2:])


def test_titles_are_safe_to_print(run, folders, monkeypatch, tmp_path):
    titles = {item: f"\x1b]0;{item}\x07\x9b2J\u202e\nline {item}" for item in range(4)}
    dataset = data.Dataset(np.array([0, 1, 2, 3], np.int32), np.array([0, 4]), titles, {})
    monkeypatch.setattr("patchrec_fast.train.start.open_data", lambda folder: dataset)
    status, shown, told = run("--items", 0, 1, "--k", 3, "--method", "exact")
    assert status == 0
    assert len(shown.splitlines()) == 5
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
        (["--items", 999, 1, 10**9, 999], "--items: no item '999' among the 300 of the data"),
        (["--history", "no such film at all"], "no title"),
        (["--items", 1, "--keep", 2], "which has no keep"),
        (["--user", 40], "--user: no user '40' among the 40 of the data"),
        (["--items", 1, "--method", "exact", "--beams", 30], "--beams: the exact search has none, got 30"),
        (["--items", 1, "--beams", 19], "--beams: expected at least the 20 titles of --k, got 19"),
        (["--items", 1, "--out", "a.csv"], "--all-users and --out: expected both or none"),
        (["--all-users"], "--all-users and --out: expected both or none"),
        (["--all-users", "--out", "a.parquet"], "--out: expected a name that ends in .csv, got 'a.parquet'"),
        (["--all-users", "--out", "no/such/a.csv"], "--out: no/such is no folder"),
        (["--items", 1, "--allow", "no/such/file"], "No such file or directory: 'no/such/file'"),
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


def test_a_user_is_all_of_their_history(run, folders):
    dataset = folders.dataset
    items = dataset.items[dataset.offsets[3] : dataset.offsets[4]].tolist()
    _, by_user, _ = run("--user", 3, "--k", 3, "--json")
    _, by_items, _ = run("--items", *items, "--k", 3, "--json")
    by_user, by_items = map(json.loads, (by_user, by_items))
    assert by_user.pop("user") == 3
    assert by_user == by_items
    _, shown, _ = run("--user", 3, "--k", 3)
    newest = ", ".join(dataset.titles[item] for item in items[-10:])
    assert shown.startswith(f"after {len(items)} titles, the newest {newest}\n")


def test_what_a_title_was_taken_for(run, folders):
    title = folders.dataset.titles[7]
    _, _, told = run("--history", f"{title.upper()} (1995)", title, "--k", 1)
    assert told.splitlines()[0] == f"--history: {title.upper()} (1995) is {title}"
    assert told.count("--history") == 1


@pytest.mark.parametrize("method", ["exact", "beam", "diverse"])
def test_files_of_items(run, tmp_path, method):
    (tmp_path / "allow").write_bytes(b"\xef\xbb\xbf7\r\n\r\n 12 \r\n30\r\n31")
    (tmp_path / "deny").write_text("30\n\n200\n")
    flags = ("--allow", tmp_path / "allow", "--deny", tmp_path / "deny", "--method", method, "--exclude-seen", "--json")
    _, shown, _ = run("--items", 7, 1, *flags)
    assert {answer["item"] for answer in json.loads(shown)["recommendations"]} == {12, 31}


@pytest.mark.parametrize(
    ("allow", "deny", "message"),
    [
        (b"7\n\n999\n1000", b"", "allow, line 3: no item '999' among the 300"),
        (b"7\n", b"8\n7", "--allow, --deny: none of the 300 items of the data is left"),
        (b"\n", b"", "--allow, --deny: none of the 300 items"),
        (b"7\n", b"7\xff", "deny is not UTF-8 (invalid start byte at byte 1)"),
    ],
)
def test_files_that_are_refused(run, tmp_path, allow, deny, message):
    (tmp_path / "allow").write_bytes(allow)
    (tmp_path / "deny").write_bytes(deny)
    status, _, told = run("--items", 1, "--allow", tmp_path / "allow", "--deny", tmp_path / "deny")
    assert status == 1
    assert message in told
    assert told.count("\n") == 1


def test_probabilities_are_shares_of_the_catalogue(run):
    """Of what is left, too: the titles that are denied keep theirs."""
    _, shown, _ = run("--items", 7, 9, "--k", 300, "--json")
    found = json.loads(shown)
    assert found["search"] == {"method": "exact", "normalize": "children", "exclude_seen": False}
    every = {answer["item"]: answer["probability"] for answer in found["recommendations"]}
    assert len(every) == 300
    assert math.fsum(every.values()) == pytest.approx(1, abs=1e-3)
    _, shown, _ = run("--items", 7, 9, "--exclude-seen", "--k", 5, "--json")
    for answer in json.loads(shown)["recommendations"]:
        assert answer["probability"] == pytest.approx(every[answer["item"]], rel=1e-3)


@pytest.mark.parametrize("flags", [(), ("--method", "beam"), ("--beams", 40), ("--normalize", "vocab")])
def test_the_first_title_is_the_same_for_every_k(run, flags):
    found = [json.loads(run("--user", 5, "--k", k, "--json", *flags)[1]) for k in (1, 5, 20)]
    assert len({each["recommendations"][0]["item"] for each in found}) == 1
    assert found[0]["search"].get("beams") == {"--beams": 40, "--method": 20}.get(flags[0] if flags else None)


def test_own_ids(run, folders, monkeypatch, tmp_path):
    """Of a shop: strings, in the history, in files, and in the answers."""
    dataset, sku = folders.dataset, {item: f"SKU-{1000 - item:04}" for item in folders.dataset.titles}
    users = [f"u{row}@shop" for row in range(len(dataset))]
    ids = {"item_ids": data.Ids(list(sku), sku.values()), "user_ids": data.Ids(range(len(users)), users)}
    shop = dataclasses.replace(dataset, **ids)
    monkeypatch.setattr("patchrec_fast.train.start.open_data", lambda folder: shop)
    (tmp_path / "deny").write_text(f"{sku[3]}\n{sku[4]}\n")
    asked = ("--deny", tmp_path / "deny", "--json", "--k", 300)
    found = json.loads(run("--user", "u2@shop", *asked)[1])
    assert found["user"] == "u2@shop"
    history = dataset.items[dataset.offsets[2] : dataset.offsets[3]].tolist()
    assert found["history"] == [sku[item] for item in history]
    assert {answer["item"] for answer in found["recommendations"]} == set(sku.values()) - {sku[3], sku[4]}
    again = json.loads(run("--items", *found["history"], *asked)[1])
    assert again["recommendations"] == found["recommendations"]
    assert "(SKU-0" in run("--items", "SKU-0997")[1]
    status, _, told = run("--items", "SKU-0997", "sku-0996")
    assert status == 1
    assert "--items: no item 'sku-0996' among the 300 of the data; did you mean 'SKU-0996'" in told


def test_all_users_as_one_by_one(run, folders, tmp_path):
    out, deny = tmp_path / "answers.csv", tmp_path / "deny.txt"
    deny.write_text("7\n9\n")
    flags = ["--k", 3, "--method", "exact", "--exclude-seen", "--deny", deny]
    status, shown, _ = run("--all-users", "--out", out, *flags)
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert (status, shown) == (0, f"{out}: 40 users, {len(rows)} rows\n")
    for user in (0, 17, 39):
        _, line, _ = run("--user", user, *flags, "--json")
        found = json.loads(line)["recommendations"]
        own = [row for row in rows if row["user"] == str(user)]
        assert [row["place"] for row in own] == ["1", "2", "3"][: len(own)]  # the first user has nearly all
        assert [(int(row["item"]), row["title"]) for row in own] == [(each["item"], each["title"]) for each in found]
        assert [float(row["probability"]) for row in own] == pytest.approx(
            [each["probability"] for each in found], 1e-4
        )


def test_answers_that_fail_leave_the_file_that_was_there(run, folders, tmp_path, monkeypatch):
    out = tmp_path / "answers.csv"
    out.write_text("old")

    def fail(*arguments, **options):
        raise ValueError("in the middle")

    monkeypatch.setattr("patchrec_fast.recommend.recommender.Recommender.recommend", fail)
    status, _, told = run("--all-users", "--out", out)
    assert status == 1
    assert "in the middle" in told
    assert [path.name for path in tmp_path.glob("answers*")] == ["answers.csv"]
    assert out.read_text() == "old"
