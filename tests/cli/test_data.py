# SPDX-License-Identifier: Apache-2.0
"""`patchrec-fast data`, from raw files to the prepared format and its figures."""

import argparse
import json
import re

import pytest

from patchrec_fast.cli import data as command
from patchrec_fast.cli.main import main
from patchrec_fast.data import load
from tests.data.raw import book, interaction, movielens

pytest.importorskip("pyarrow")


def run(capsys, *arguments):
    """The JSON that the command prints."""
    assert main(["data", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def fails(capsys, *arguments):
    """The one line on stderr."""
    assert main(["data", *map(str, arguments)]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = [line for line in shown.err.splitlines() if "error:" in line]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("action", ["prepare", "download", "stats", "sample", "shop"])
def test_every_action_helps_with_an_example_that_parses(action, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["data", action, "--help"])
    assert stopped.value.code == 0
    _, _, examples = capsys.readouterr().out.partition("example:\n")
    assert examples
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    for line in examples.strip().splitlines():
        words = line.split()
        assert words[:3] == ["patchrec-fast", "data", action]
        assert parser.parse_args(words[2:]).action == action


def test_prepare_movielens(tmp_path, capsys):
    raw = movielens(tmp_path / "raw", "dat")
    card = run(capsys, "prepare", "ml-1m", "--raw", raw, "--out", tmp_path / "out")
    assert card == json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["rules"]["above_rating"] == 3
    assert load(tmp_path / "out").items.tolist() == [9, 2, 1, 2]


def test_rules_can_be_changed(tmp_path, capsys):
    raw = movielens(tmp_path / "raw", "csv")
    options = (
        "--above-rating 2.5 --min-user 3 --min-item 1 --counted all --untitled drop --catalogue used --shares 1 1 1 "
        "--keep-repeats --keep-year --articles all"
    )
    card = run(capsys, "prepare", "movielens", "--raw", raw, "--out", tmp_path / "out", *options.split())
    assert card["rules"] == {
        "above_rating": 2.5,
        "min_user": 3,
        "min_item": 1,
        "counted": "all",
        "untitled": "drop",
        "repeats": "keep",
        "catalogue": "used",
        "parentheses": "year",
        "articles": "all",
        "split": "time",
        "shares": [1, 1, 1],
    }
    assert load(tmp_path / "out").items.tolist() == [9, 1, 2]
    assert load(tmp_path / "out").titles[2] == "Les Misérables (1995)"


def test_prepare_goodreads(tmp_path, capsys):
    for name, line in (("interactions", interaction(date_updated="Fri Aug 25 13:55:02 -0700 2017")), ("books", book())):
        (tmp_path / f"goodreads_{name}.json").write_text(line + "\n")
    options = ("--min-user", 1, "--min-item", 1, "--date", "date_updated")
    card = run(capsys, "prepare", "goodreads", "--raw", tmp_path, "--out", tmp_path / "out", *options)
    assert (card["rules"]["above_rating"], card["rules"]["untitled"]) == (4, "drop")
    assert load(tmp_path / "out").titles == {11: "A Title (Series, #1)"}


def test_prepare_a_table(tmp_path, capsys):
    (tmp_path / "log.csv").write_text("who,sku,name,at,stars\nann,7,Seven,2020-01-02,5\nann,8,Eight,2020-01-01,2\n")
    names = ("--user", "who", "--item", "sku", "--title", "name", "--time", "at")
    source = ("prepare", "table", "--raw", tmp_path / "log.csv", "--out", tmp_path / "out")
    run(capsys, *source, *names)
    assert load(tmp_path / "out").items.tolist() == [8, 7]
    run(capsys, *source, *names, "--rating", "stars", "--above-rating", 2)
    assert load(tmp_path / "out").items.tolist() == [7]
    assert "above_rating" in fails(capsys, *source, *names, "--above-rating", 2)


def test_text_for_people(tmp_path, capsys):
    raw = movielens(tmp_path / "raw", "dat")
    assert main(["data", "prepare", "ml-1m", "--raw", str(raw), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^interactions\n  read +5$", shown, re.MULTILINE)
    assert re.search(r"^  shares +48 1 1$", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda raw: (raw / "u.item").unlink(), "has u.data but no u.item"),
        (lambda raw: (raw / "u.data").write_text("1\t2\n"), "u.data: line 1 is '1\\t2', expected user, item"),
        (lambda raw: (raw / "u.data").write_text("1\t2\t3\t4"), "u.data: line 1 does not end with a newline"),
        (lambda raw: (raw / "u.data").write_text("1\t2\t3\t4\n"), "no interactions are left by the rules: read 1"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(tmp_path, capsys, break_it, said):
    break_it(movielens(tmp_path / "raw", "100k"))
    assert said in fails(capsys, "prepare", "ml-100k", "--raw", tmp_path / "raw", "--out", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_download(tmp_path, capsys, monkeypatch):
    given = []

    def fetch(name, out, *, bar):
        given.append((name, out))
        bar.reset(10)
        bar.update(10)
        return tmp_path / name

    monkeypatch.setattr("patchrec_fast.data.download", fetch)
    assert run(capsys, "download", "ml-1m", "--out", tmp_path) == {"folder": str(tmp_path / "ml-1m")}
    assert given == [("ml-1m", str(tmp_path))]


def test_sample_and_its_figures(tmp_path, capsys):
    options = ("--users", 5, "--items", 30, "--seed", 1, "--tokenizer", tmp_path / "tokenizer")
    made = run(capsys, "sample", "--out", tmp_path / "sample", *options)
    assert (made["users"], made["items"]) == (5, 30)
    figures = run(capsys, "stats", tmp_path / "sample", "--tokenizer", tmp_path / "tokenizer")
    assert figures["interactions"] == made["interactions"] == len(load(tmp_path / "sample").items)
    assert 1 < figures["tokens_per_title"] < 30
    assert "tokens_per_title" not in run(capsys, "stats", tmp_path / "sample")


def test_stats_of_an_older_movielens_say_which_ids(tmp_path, capsys):
    raw = movielens(tmp_path / "raw", "dat")
    run(capsys, "prepare", "ml-1m", "--raw", raw, "--out", tmp_path / "out")
    assert "ids:" not in run_with_notes(capsys, "stats", tmp_path / "out")[1]
    card = tmp_path / "out" / "card.json"
    card.write_text(
        json.dumps({name: value for name, value in json.loads(card.read_text()).items() if name != "format"})
    )
    notes = run_with_notes(capsys, "stats", tmp_path / "out")[1].splitlines()
    assert sum("note: ids: MovieLens' own; this set was prepared by an older version" in line for line in notes) == 1


def test_stats_of_nothing(tmp_path, capsys):
    assert "no such file" in fails(capsys, "stats", tmp_path)


def test_an_action_is_needed(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["data"])
    assert stopped.value.code == 2


@pytest.mark.parametrize("words", [["--debug", "stats", "nowhere"], ["stats", "nowhere", "--debug"]])
def test_debug_before_or_after_the_action(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):
        main(["data", *words])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--users", 10**12), "users: expected at most 10,000,000"),
        (("--users", 0), "users: expected at least 1, got 0"),
        (("--users", -(10**30)), "users: expected at least 1"),
        (("--items", 10**30), "items: expected at most 1,000,000"),
        (("--items", 9), "items: expected at least 10, got 9"),
        (("--seed", -1), "seed: expected at least 0, got -1"),
    ],
)
def test_absurd_numbers_of_a_sample(tmp_path, capsys, options, named):
    assert named in fails(capsys, "sample", "--out", tmp_path / "out", *options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--min-user", 10**30), "min_user: expected at most 2147483647"),
        (("--min-item", -(10**30)), "min_item: expected at least 1"),
        (("--above-rating", "nan"), "above_rating: expected a finite number, got nan"),
        (("--above-rating", "1e999"), "above_rating: expected a finite number, got inf"),
        *[(("--shares", *shares), "shares: expected three finite numbers")
          for shares in (("nan", 1, 1), (1, "nan", 1), ("inf", 1, 1), (0, 1, 1), (1, 1, -1), (1, "inf", 0))],
    ],
)  # fmt: skip
def test_absurd_rules(tmp_path, capsys, options, named):
    raw = movielens(tmp_path / "raw", "dat")
    assert named in fails(capsys, "prepare", "ml-1m", "--raw", raw, "--out", tmp_path / "out", *options)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_large_shares_are_only_ratios(tmp_path, capsys):
    raw = movielens(tmp_path / "raw", "dat")
    for out, shares in (("a", (1, 1, 1)), ("b", ("1e308", "1e308", "1e308"))):
        run(capsys, "prepare", "ml-1m", "--raw", raw, "--out", tmp_path / out, "--shares", *shares)
    a, b = (load(tmp_path / name).splits for name in "ab")
    assert {name: ends.tolist() for name, ends in a.items()} == {name: ends.tolist() for name, ends in b.items()}


def test_empty_splits_and_cleaned_titles_are_said(tmp_path, capsys):
    rows = [f'u{user},{item},"Film\t\x1b[2J {item}",5' for user in range(3) for item in range(8)]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,title,time", *rows, ""]))
    card = run_with_notes(capsys, "prepare", "table", "--raw", tmp_path / "log.csv", "--out", tmp_path / "out")
    assert card[0]["found"]["control characters and spaces"]["count"] == 8
    assert set(load(tmp_path / "out").titles.values()) == {f"Film [2J {item}" for item in range(8)}
    assert "note: 8 titles with control characters" in card[1]
    counts = "(train 15, val 0, test 0)"
    for _, notes in (card, run_with_notes(capsys, "stats", tmp_path / "out")):
        for name in ("val", "test"):
            assert f"note: the split {name} is empty, it has no target at position 3 or later {counts}" in notes
        assert "split train" not in notes
    assert (
        "the split val is empty"
        in run_with_notes(capsys, "sample", "--users", 1, "--items", 10, "--out", tmp_path / "s")[1]
    )


def run_with_notes(capsys, *arguments):
    assert main(["data", *map(str, arguments), "--json"]) == 0
    shown = capsys.readouterr()
    return json.loads(shown.out), shown.err


@pytest.mark.parametrize("action", ["prepare", "sample", "download"])
@pytest.mark.parametrize("out", ["", "file", "file/below"])
def test_out_that_is_no_folder(tmp_path, capsys, monkeypatch, action, out):
    movielens(tmp_path / "raw", "dat")
    (tmp_path / "file").write_text("mine")
    monkeypatch.chdir(tmp_path)
    words = {"prepare": ("ml-1m", "--raw", "raw"), "sample": (), "download": ("ml-1m",)}[action]
    assert re.search("expected a path, got ''" if not out else "file", fails(capsys, action, *words, "--out", out))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "raw"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_raw_file_in_the_output_folder_stays(tmp_path, capsys, monkeypatch):
    """`items.parquet` is the name of one of a set's files as well."""
    parquet = pytest.importorskip("pyarrow.parquet")
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"user": ["a", "b"], "item": ["x", "y"], "title": ["X", "Y"], "time": [1, 2]})
    monkeypatch.chdir(tmp_path)
    for name in ("items.parquet", "titles.parquet"):
        parquet.write_table(table, name)
        before = (tmp_path / name).read_bytes()
        assert f"{name}: there already" in fails(capsys, "prepare", "table", "--raw", name, "--out", ".")
        assert (tmp_path / name).read_bytes() == before
        run(capsys, "prepare", "table", "--raw", name, "--out", f"prepared {name}")
        (tmp_path / name).unlink()


def test_a_tokenizer_is_not_written_over_a_models(tmp_path, capsys):
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    words = ("sample", "--users", 2, "--items", 10, "--out", tmp_path / "out", "--tokenizer")
    assert "holds a model" in fails(capsys, *words, tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() == "{}"
    assert "not a folder" in fails(capsys, *words, tmp_path / "config.json")
    for text in ("{}", "x", ""):
        (tmp_path / "damaged").mkdir(exist_ok=True)
        (tmp_path / "damaged" / "tokenizer.json").write_text(text)
        run(capsys, "sample", "--users", 2, "--items", 10, "--out", tmp_path / "out")
        said = fails(capsys, "stats", tmp_path / "out", "--tokenizer", tmp_path / "damaged")
        assert str(tmp_path / "damaged") in said
        assert "tokenizer" in said


def test_what_is_printed_is_safe_to_print(tmp_path, capsys):
    assert main(["data", "sample", "--users", "2", "--items", "10", "--out", str(tmp_path / "o\x1b[2Jut\u202e")]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.endswith(rf"{tmp_path.name}/o\x1b[2Jut\u202e")
    assert command._lines({"\x1b": {"\n": ["\u200b"]}}) == [r"\x1b", r"  \n  ['\u200b']"]
