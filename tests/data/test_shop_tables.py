# SPDX-License-Identifier: Apache-2.0
"""Tables as shops write them: separators, encodings, formats of time, a second table of titles, and what is counted."""

import csv
import gzip
import io
import json
from datetime import datetime

import numpy as np
import pytest

from patchrec_fast.cli.main import main
from patchrec_fast.data import RULES, Columns, MovieLens, Rules, delimited, jsonl, load, prepare
from tests.data.raw import LAYOUTS, MOVIES, RATINGS, movielens

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

NAMES = ("kunde", "artikel", "name", "zeit", "note")
ROLES = dict(zip(("user", "item", "title", "time", "rating"), NAMES, strict=True))


def shop(seed, rows=200):
    """Random rows in a shop's habits; a title has all that needs quotes."""
    rng = np.random.default_rng(seed)
    marks = ["", ";", ",", "|", '"', "\t", " ü", "\nline", "&amp;"]
    table = []
    for second in rng.permutation(rows).tolist():
        item = int(rng.integers(30))
        time = datetime(2020, 12, 31, 10, second // 60, second % 60)
        title = f"Käse {marks[item % len(marks)]}{item}"
        table.append((f"K-{rng.integers(9)}", f"A{item:03}", title, time, float(rng.integers(2, 11)) / 2))
    return table


def delimited_text(table, sep, form="%d.%m.%Y %H:%M:%S", comma=True):
    out = io.StringIO()
    writer = csv.writer(out, delimiter=sep, lineterminator="\r\n")
    writer.writerow(NAMES)
    for user, item, title, time, rating in table:
        note = str(rating).replace(".", ",") if comma else str(rating)
        writer.writerow([user, item, title, time.strftime(form), note])
    return out.getvalue()


def expected(table):
    """The users' items by time, the earliest of each pair, with dictionaries."""
    users = {}
    for user, item, _, time, _ in table:
        items = users.setdefault(user, {})
        items[item] = min(time, items.get(item, time))
    return {user: sorted(items, key=items.get) for user, items in users.items()}


def found(prepared):
    """The same of a prepared set."""
    dataset = prepared.dataset
    names = dataset.item_ids.of_all(dataset.items.tolist())
    ends = dataset.offsets.tolist()
    return {user: names[a:b] for user, a, b in zip(dataset.user_ids, ends, ends[1:], strict=False)}


def read(file, rules=None, **options):
    return prepare(Columns(file, **ROLES | options), rules or Rules())


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("encoding", [None, "utf-8-sig", "latin-1", "cp1252", "utf-16", "utf-16-le"])
@pytest.mark.parametrize(("ending", "sep"), [("csv", ","), ("csv", ";"), ("tsv", "\t"), ("txt", "|"), ("txt", "~")])
def test_separators_and_encodings(tmp_path, ending, sep, encoding, packed):
    table = shop(len(sep + str(encoding)))
    content = delimited_text(table, sep).encode(encoding or "utf-8")
    file = tmp_path / (f"log.{ending}.gz" if packed else f"LOG.{ending.upper()}")
    file.write_bytes(gzip.compress(content) if packed else content)
    given = {"encoding": encoding} | ({"sep": sep} if sep == "~" else {})
    got = read(file, Rules(above_rating=0), time_format="%d.%m.%Y %H:%M:%S", **given)
    assert found(got) == expected(table)
    titles = {item: " ".join(title.replace("&amp;", "&").split()) for _, item, title, *_ in table}
    assert {got.dataset.item_ids.of(item): title for item, title in got.dataset.titles.items()} == titles


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rows", [1 << 16, 7])
def test_json_lines(tmp_path, monkeypatch, packed, rows):
    monkeypatch.setattr(jsonl, "_ROWS", rows)
    table = shop(3)
    lines = []
    for user, item, title, time, rating in table:
        fields = {
            "other": [1, {"x": None}],
            **dict(zip(NAMES, (user, item, title, time.isoformat(), rating), strict=True)),
        }
        lines.append(json.dumps(fields, ensure_ascii=len(lines) % 2 == 0))
    del_title = json.loads(lines[0])
    del del_title["name"]
    lines[0] = json.dumps(del_title)  # a title may be missing in a row
    content = "\n".join([*lines[:50], "", *lines[50:], ""]).encode()
    file = tmp_path / f"log.jsonl{'.gz' if packed else ''}"
    file.write_bytes(gzip.compress(content) if packed else content)
    assert found(read(file)) == expected(table)
    assert found(read(file, Rules(above_rating=0))) == expected(table)


def test_json_ids_and_times_are_what_is_written(tmp_path):
    """A number is the id that its text is in CSV, and no digit of a time is lost."""
    lines = [{"user": 7, "item": i, "title": f"T{i}", "time": 2**62 - i} for i in range(5)]
    lines[2]["user"] = "7"
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    got = prepare(Columns(tmp_path / "log.jsonl"), Rules())
    assert (len(got.dataset), got.dataset.items.tolist()) == (1, [4, 3, 2, 1, 0])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("form", ["{:.6f}", "{:.17g}", "{:e}"])
def test_fractions_keep_their_order(tmp_path, seed, form):
    """To the microsecond, and among whole numbers."""
    rng = np.random.default_rng(seed)
    times = 1.7e9 + rng.permutation(400) * (1e-6 if form != "{:e}" else 1e5)
    texts = [form.format(time) for time in times]
    if form == "{:.6f}":
        texts[rng.integers(400)] = "1699999999"
    rows = [f"u,{n},T{n},{text}" for n, text in enumerate(texts)]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,title,time", *rows, ""]))
    got = prepare(Columns(tmp_path / "log.csv"), Rules())
    order = sorted(range(400), key=lambda n: (float(texts[n]), n))
    assert got.dataset.items.tolist() == order


def test_blocks_do_not_matter(tmp_path, monkeypatch):
    table = shop(5, 600)
    (tmp_path / "log.csv").write_text(delimited_text(table, ";"), newline="")
    options = {"time_format": "%d.%m.%Y %H:%M:%S"}
    whole = read(tmp_path / "log.csv", **options)
    monkeypatch.setattr(delimited, "BLOCK", 200)
    many = read(tmp_path / "log.csv", **options)
    assert found(many) == found(whole) == expected(table)
    assert many.tallies == whole.tallies
    assert many.dataset.titles == whole.dataset.titles


class TestTitles:
    """From a second table."""

    LOG = "who;sku;at\na;x;1\nb;y;2\na;y;3\n"

    @pytest.fixture
    def log(self, tmp_path):
        (tmp_path / "log.csv").write_text(self.LOG)
        return tmp_path / "log.csv"

    def columns(self, log, titles, **options):
        return Columns(log, user="who", item="sku", time="at", titles=titles, **options)

    @pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl", ".parquet"])
    def test_kinds(self, log, tmp_path, kind):
        table = {"id": ["y", "z", "x", "y"], "label": ["Why", "Zed", None, "Other"]}
        file = tmp_path / f"items{kind}"
        rows = list(zip(*table.values(), strict=True))
        if kind == ".parquet":
            pq.write_table(pa.table(table), file)
        elif kind == ".jsonl":
            file.write_text("".join(json.dumps(dict(zip(table, row, strict=True))) + "\n" for row in rows))
        else:
            sep = "," if kind == ".csv" else "\t"
            file.write_text("".join(sep.join(cell or "" for cell in row) + "\n" for row in [tuple(table), *rows]))
        names = {"titles_item": "id", "titles_title": "label"}
        with pytest.raises(ValueError, match=rf"items\{kind}: 1 of 2 items have no title, as 'x'; --untitled drop"):
            prepare(self.columns(log, file, **names), Rules())
        got = prepare(self.columns(log, file, **names), Rules(untitled="drop"))
        assert list(got.dataset.titles.values()) == ["Why"]
        assert got.tallies["untitled items"].examples == ["x"]
        assert got.tallies["items with several titles"].examples == [{"item": "y", "kept": "Why", "other": "Other"}]
        everything = prepare(self.columns(log, file, **names), Rules(untitled="drop", catalogue="all"))
        assert set(everything.dataset.titles.values()) == {"Why", "Zed"}

    def test_numbers_in_one_and_text_in_the_other(self, tmp_path):
        pq.write_table(pa.table({"user": [1, 1], "item": [7, 8], "time": [1, 2]}), tmp_path / "log.parquet")
        (tmp_path / "items.csv").write_text("item,title\n8,Eight\n7,Seven\n")
        got = prepare(Columns(tmp_path / "log.parquet", titles=tmp_path / "items.csv"), Rules())
        assert got.dataset.titles == {7: "Seven", 8: "Eight"}
        assert Columns(tmp_path / "log.parquet", titles=tmp_path / "items.csv").files == [
            tmp_path / "log.parquet",
            tmp_path / "items.csv",
        ]


@pytest.mark.parametrize("kind", [".csv", ".parquet"])
@pytest.mark.parametrize("items", [["Milk", "Bread"], [7, 8]])
def test_one_column_is_item_and_title(tmp_path, kind, items):
    table = {"user": ["a", "a"], "name": items, "time": [1, 2]}
    if kind == ".parquet":
        pq.write_table(pa.table(table), tmp_path / "log.parquet")
    else:
        rows = [",".join(map(str, row)) for row in [tuple(table), *zip(*table.values(), strict=True)]]
        (tmp_path / "log.csv").write_text("\n".join([*rows, ""]))
    got = prepare(Columns(tmp_path / f"log{kind}", item="name", title="name"), Rules())
    assert list(got.dataset.titles.values()) == [str(item) for item in items]


def test_repeats_stay_where_they_are_wanted(tmp_path):
    (tmp_path / "log.csv").write_text("user,item,title,time\na,1,A,1\na,2,B,2\na,1,A,3\nb,1,A,4\na,1,A,5\nb,1,A,6\n")
    drop, keep = (prepare(Columns(tmp_path / "log.csv"), Rules(repeats=word)) for word in ("drop", "keep"))
    assert drop.dataset.items.tolist() == [1, 2, 1]
    assert keep.dataset.items.tolist() == [1, 2, 1, 1, 1, 1]
    assert drop.tallies["repeats"].count == 3
    assert drop.tallies["repeats"].examples == [
        {"user": "a", "item": 1, "times": 3},
        {"user": "b", "item": 1, "times": 2},
    ]
    assert "repeats" not in keep.tallies


def test_an_unread_column_may_hold_anything(tmp_path):
    """Of any type, changing it, and in another encoding."""
    rows = [b"u%d,%d,T,%d,%s" % (n, n, n, b"\xe9" if n == 3 else b"1" if n < 400 else b"x") for n in range(500)]
    (tmp_path / "log.csv").write_bytes(b"\n".join([b"user,item,title,time,other", *rows, b""]))
    assert len(prepare(Columns(tmp_path / "log.csv"), Rules()).dataset) == 500


@pytest.mark.parametrize("layout", LAYOUTS)
def test_movielens_by_either_command(tmp_path, layout):
    """The official files as tables, by the paper's rules for titles."""
    want = prepare(MovieLens(movielens(tmp_path / "raw", layout)), RULES["movielens"])
    rows = ["userId,movieId,rating,timestamp", *(",".join(map(str, row)) for row in RATINGS)]
    (tmp_path / "ratings.csv").write_text("\n".join([*rows, ""]))
    (tmp_path / "movies.csv").write_text("\n".join(["movieId,title", *(f'{n},"{t}"' for n, t in MOVIES.items()), ""]))
    names = {"user": "userId", "item": "movieId", "time": "timestamp", "rating": "rating"}
    got = prepare(Columns(tmp_path / "ratings.csv", titles=tmp_path / "movies.csv", **names), RULES["movielens"])
    assert list(got.dataset.user_ids) == list(want.dataset.user_ids)
    assert got.dataset.item_ids.of_all(got.dataset.items) == want.dataset.item_ids.of_all(want.dataset.items)
    shown = [[prepared.dataset.titles[item] for item in prepared.dataset.items.tolist()] for prepared in (got, want)]
    assert shown[0] == shown[1]
    assert sorted(got.dataset.titles.values()) == sorted(want.dataset.titles.values())


def test_on_the_command_line(tmp_path, capsys):
    log = [
        "customer;sku;product;bought at;stars",
        'ann;m1;"Salt &amp; Pepper";31.12.2020 10:00;4,5',
        "bob;m1;SALT & PEPPER;31.12.2020 09:05;4",
        "ann;m1;Salt & Pepper;31.12.2020 11:00;5",
        'ann;m2;"Milk\n1 l";30.12.2020 08:00;5',
        "bob;m3;Milk 1 l;29.12.2020 08:00;3,5",
        "bob;m2;Milk 1 l;28.12.2020 08:00;1,5",
        "",
    ]
    (tmp_path / "log.csv").write_text("\n".join(log), encoding="latin-1")
    names = ("--user", "customer", "--item", "sku", "--title", "product", "--time", "bought at", "--rating", "stars")
    words = ["data", "prepare", "table", "--raw", str(tmp_path / "log.csv"), "--out", str(tmp_path / "out"), *names]
    words += ["--time-format", "%d.%m.%Y %H:%M", "--above-rating", "2", "--encoding", "latin-1", "--sep", "semicolon"]
    assert main(words) == 0
    notes = capsys.readouterr().err
    for said in (
        "rated too low: 1 of 6 rows, left out",
        "an item again of the same user: 1 of 6 rows, left out, the earliest stays",
        "user 'ann' has item 'm1' 2 times (--keep-repeats keeps them)",
        "1 item with several titles, the first stays: item 'm1' is called 'Salt & Pepper', not 'SALT & PEPPER'",
        "2 items share their title with another, a model cannot tell them apart: 'Milk 1 l' is 'm2', 'm3'",
        "1 title with HTML entities, which are characters now: 'Salt &amp; Pepper' is 'Salt & Pepper'",
        r"1 title with control characters, line ends or repeated spaces, which are gone: 'Milk\n1 l' is 'Milk 1 l'",
    ):
        assert said in notes
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["found"]["shared titles"] == {
        "count": 2,
        "examples": [{"title": "Milk 1 l", "count": 2, "items": ["m2", "m3"]}],
    }
    assert len(load(tmp_path / "out").items) == 4
    assert main([*words, "--keep-repeats"]) == 0
    assert len(load(tmp_path / "out").items) == 5


def test_options_of_tables_are_no_options_of_others(tmp_path, capsys):
    raw = movielens(tmp_path / "raw", "dat")
    words = ["data", "prepare", "ml-1m", "--raw", str(raw), "--out", str(tmp_path / "out"), "--sep", ","]
    assert main(words) == 1
    assert "--sep: expected only for a table, not for ml-1m" in capsys.readouterr().err
