# SPDX-License-Identifier: Apache-2.0
"""Three files as three splits, against one table that knows which row is of which."""

import json

import numpy as np
import pytest

from patchrec_fast.cli.main import main
from patchrec_fast.data import Columns, Rules, SplitFiles, load, prepare

pytest.importorskip("pyarrow")
NAMES = ("train", "val", "test")
FILES = Rules(split="files")


def rows_of(rng, users, items):
    """user, item, time of each split; each user's train before val before test, with equal times between them."""
    parts = ([], [], [])
    for user in users:
        times = np.sort(rng.integers(0, 20, rng.integers(1, 9)))
        cuts = np.sort(rng.integers(0, len(times) + 1, 2)) if rng.random() < 0.8 else [0, 0]
        for place, (item, time) in enumerate(zip(rng.permutation(items), times.tolist(), strict=False)):
            parts[sum(place >= cut for cut in cuts)].append((user, str(item), int(time)))
    for rows in parts:
        rng.shuffle(rows)
    return parts


def write(folder, parts, title="Film {}"):
    for name, rows in zip(NAMES, parts, strict=True):
        lines = [f"{user},{item},{title.format(item)},{time}" for user, item, time in rows]
        (folder / f"{name}.csv").write_text("\n".join(["user,item,title,time", *lines, ""]))
    return [folder / f"{name}.csv" for name in NAMES]


def three(files):
    return SplitFiles(*map(Columns, files))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("kind", ["numbers", "text", "text in test"])
def test_against_lists(tmp_path, seed, kind):
    rng = np.random.default_rng(seed)
    items = [f"sku-{n}" for n in range(15)] if kind == "text" else range(100, 115)
    parts = rows_of(rng, range(12), list(items))
    if kind == "text in test":
        parts[2].append((77, "x", 5))
    if not all(parts):
        pytest.skip("a split has no rows")
    got = prepare(three(write(tmp_path, parts)), FILES).dataset
    sequences = {}
    for part, rows in enumerate(parts):
        for user, item, time in rows:
            sequences.setdefault(user, []).append((time, part, len(sequences.get(user, [])), item))
    want = {user: sorted(rows) for user, rows in sequences.items()}
    assert list(got.user_ids) == list(want)  # in the order of the files
    assert got.item_ids.same == (kind == "numbers")
    for row, rows in enumerate(want.values()):
        found = got.items[got.offsets[row] : got.offsets[row + 1]]
        assert list(map(str, got.item_ids.of_all(found))) == [item for *_, item in rows]
        assert [got.titles[number] for number in found.tolist()] == [f"Film {item}" for *_, item in rows]
        for part, name in enumerate(NAMES):
            places = [place for place, (_, found, *_) in enumerate(rows) if found == part]
            assert got.splits[name][row].tolist() == ([places[0], places[-1]] if places else [-1, -1])


def test_a_user_whose_splits_are_not_in_order(tmp_path):
    parts = [[("ann", "1", 3), ("bob", "1", 9)], [("ann", "2", 4), ("bob", "2", 8)], [("ann", "3", 5)]]
    with pytest.raises(
        ValueError, match=r"val\.csv: user 'bob' has an interaction here that is before one in train\.csv"
    ):
        prepare(three(write(tmp_path, parts)), FILES)
    parts[1][1] = ("bob", "2", 9)  # at the same time is after it
    prepare(three(write(tmp_path, parts)), FILES)
    parts[2].append(("bob", "7", 0))
    with pytest.raises(ValueError, match=r"test\.csv: user 'bob' .* before one in train\.csv"):
        prepare(three(write(tmp_path, parts)), FILES)


def test_a_row_in_two_files_counts_once(tmp_path):
    parts = [[("ann", "1", 3)], [("ann", "1", 4), ("ann", "2", 5)], [("ann", "3", 6)]]
    got = prepare(three(write(tmp_path, parts)), FILES)
    assert got.dataset.items.tolist() == [1, 2, 3]
    assert got.counts["one of each pair"] == 3


def test_the_first_title_that_shows_something(tmp_path):
    files = write(tmp_path, [[("a", "1", 1), ("a", "2", 2)], [("a", "3", 3)], [("a", "4", 4)]])
    train, val, _ = files
    train.write_text(train.read_text().replace("Film 1", ""))
    val.write_text(val.read_text() + "b,1,Later,9\nb,2,Other,9\n")
    assert prepare(three(files), FILES).dataset.titles == {1: "Later", 2: "Film 2", 3: "Film 3", 4: "Film 4"}


def test_only_with_its_rule(tmp_path):
    files = write(tmp_path, [[("a", "1", 1)], [("a", "2", 2)], [("a", "3", 3)]])
    with pytest.raises(ValueError, match="split: expected 'files' for SplitFiles and only for it, got 'time'"):
        prepare(three(files), Rules())
    with pytest.raises(ValueError, match="split: expected 'files' for SplitFiles and only for it, got 'files'"):
        prepare(Columns(files[0]), FILES)
    with pytest.raises(ValueError, match="shares: expected only with the split 'time'"):
        Rules(split="leave-one-out", shares=(8, 1, 1))
    with pytest.raises(ValueError, match="split: expected one of"):
        Rules(split="random")


class TestCommand:
    @pytest.fixture
    def words(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        rows = [[("a", str(n), n) for n in range(5)], [("a", "5", 5)], [("a", "6", 6), ("b", "6", 7)]]
        write(tmp_path, rows)
        return ["data", "prepare", "table", "--raw", "train.csv", "--out", "out", "--json"]

    def test_files(self, words, capsys):
        assert main([*words, "--split", "files", "--val", "val.csv", "--test", "test.csv"]) == 0
        card = json.loads(capsys.readouterr().out)
        assert sorted(card["inputs"]) == ["test.csv", "train.csv", "val.csv"]
        assert card["rules"]["split"] == "files"
        found = load("out")
        assert {name: ends.tolist() for name, ends in found.splits.items()} == {
            "train": [[0, 4], [-1, -1]],
            "val": [[5, 5], [-1, -1]],
            "test": [[6, 6], [0, 0]],
        }
        test = {"samples": 1, "users": 1, "mean_history": 6.0, "longest_history": 6}
        assert card["statistics"]["test"] == test
        assert main(["data", "stats", "out"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert "  longest_history  6" in lines[lines.index("test") :]

    def test_leave_one_out(self, words, capsys):
        assert main([*words, "--split", "leave-one-out"]) == 0
        assert load("out").splits["test"].tolist() == [[4, 4]]
        assert load("out").splits["val"].tolist() == [[3, 3]]

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            (["--split", "files"], "--val: expected a file with --split files"),
            (["--split", "files", "--val", "val.csv"], "--test: expected a file with --split files"),
            (["--val", "val.csv"], "--val: expected a file only with --split files"),
            (["--split", "leave-one-out", "--shares", "8", "1", "1"], "--shares: expected only with --split time"),
            (["--split", "files", "--val", "val.csv", "--test", "no.csv"], "no.csv: no such file"),
        ],
    )
    def test_flags_that_do_not_fit(self, words, more, said, capsys, tmp_path):
        assert main([*words, *more]) == 1
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_files_of_another_source(self, words, capsys):
        words[2] = "ml-1m"
        assert main([*words, "--split", "files", "--val", "val.csv", "--test", "test.csv"]) == 1
        assert "--split: expected files only for a table, not for ml-1m" in capsys.readouterr().err
