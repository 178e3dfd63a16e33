# SPDX-License-Identifier: Apache-2.0
"""Hundreds of malformed tables: each is refused in one line that names the file, and where a row is at fault the row
and the column, in our words and not in those of a parser.

`python -m pytest -s tests/data/test_malformed_tables.py` prints every message, to be looked at.
"""

import gzip
import json
import re
from typing import NamedTuple

import pytest

from patchrec_fast.cli.main import main
from patchrec_fast.data import Columns, Rules, prepare

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

NAMES = ("user", "item", "title", "time", "rating")
SEPARATORS = {".csv": ",", ".csv.gz": ",", " semicolon.csv": ";", ".tsv": "\t", " pipe.txt": "|"}
JSON = (".jsonl", ".jsonl.gz")
PARSERS = re.compile(r"arrow|CSV parse|UTF8|inflate|JSON parse|Expecting|codec|Traceback|struct|magic", re.IGNORECASE)
ROWS = 9
PLACES = {"first": 0, "middle": 4, "last": ROWS - 1}


class Case(NamedTuple):
    """A table that is refused."""

    name: str
    file: str
    content: bytes | dict  # of a Parquet file the columns
    row: int | None = None  # that the message names
    column: str | None = None
    options: dict = {}  # of Columns  # noqa: RUF012
    says: str = ""  # a pattern, besides


def rows(times="2020-01-{:02}"):
    return [[f"u{n}", f"i{n % 4}", f"Title {n % 4}", times.format(n + 1), f"{n % 5}.5"] for n in range(ROWS)]


def text(kind, table, header=NAMES):
    """The rows as a file of that kind, with every value as it is."""
    if kind in JSON:
        lines = [json.dumps(dict(zip(header, row, strict=False))) for row in table]
    else:
        lines = [SEPARATORS[kind].join(map(str, row)) for row in [header, *table]]
    return packed(kind, "".join(f"{line}\n" for line in lines).encode())


def packed(kind, content):
    return gzip.compress(content, mtime=0) if kind.endswith(".gz") else content


def columns_of(table):
    return {name: list(values) for name, values in zip(NAMES, zip(*table, strict=True), strict=True)}


def number(kind, place):
    """What a row is called: the header of a text table is row 1."""
    return place + (2 if kind in SEPARATORS else 1)


VALUES = [
    *[(name, "") for name in ("user", "item", "time", "rating")],
    ("user", "  "),
    ("user", "NaN"),
    ("item", "NULL"),
    ("item", "a\x07b"),
    ("time", "soon"),
    ("time", "31.12.2020"),
    ("time", "2020-02-30"),
    ("time", "1.5 days"),
    ("rating", "good"),
    ("rating", "nan"),
    ("rating", "1e999"),
    ("rating", "4;5 of 5"),
]


def bad_values():
    """One value in one row, in every format."""
    for number_of, (name, value) in enumerate(VALUES):
        kinds = [*SEPARATORS, *JSON, ".parquet"]
        for kind_of, kind in enumerate(kinds):
            if SEPARATORS.get(kind, "none") in value:
                continue
            place = list(PLACES.values())[(number_of + kind_of) % 3]
            table = rows()
            table[place][NAMES.index(name)] = value or None if kind in (*JSON, ".parquet") else value
            content = columns_of(table) if kind == ".parquet" else text(kind, table)
            yield Case(f"{name} {value!r} in row {place}", f"log{kind}", content, number(kind, place), name)


def bad_formats():
    """Times that are not of the format that is given."""
    for kind in (".csv", ".jsonl", ".parquet"):
        for form, value in (("%d.%m.%Y", "12/31/2020"), ("%d.%m.%Y", "30.02.2020"), ("%d.%m.%Y %H:%M", "01.02.2020")):
            table = rows("{:02}.01.2020" + (" 10:00" if "H" in form else ""))
            table[4][3] = value
            content = columns_of(table) if kind == ".parquet" else text(kind, table)
            yield Case(
                f"{value} of {form}",
                f"log{kind}",
                content,
                number(kind, 4),
                "time",
                {"time_format": form},
                re.escape(form),
            )


def bad_lines():
    """A line of a text table."""
    for kind in SEPARATORS:
        for place_name, place in PLACES.items():
            table = rows()
            good = table[place]
            for fault, row in (
                ("short", good[:4]),
                ("long", [*good, "more"]),
                ("a quote that is not closed", [good[0], '"Half', *good[2:]]),
                ("a quote closed early", [good[0], good[1], '"Half" a title', *good[3:]]),
            ):
                table[place] = row
                if fault == "a quote closed early":
                    table[place] = [good[0], good[1], '"Ha"lf\n"', *good[3:]]
                name = f"{fault}, {place_name}"
                yield Case(
                    name,
                    f"log{kind}",
                    text(kind, table),
                    number(kind, place),
                    says="columns separated|unbalanced quotes",
                )
        for name, raw in (("latin-1", b"Caf\xe9 \xfcber"), ("windows", b"\x93quoted\x94"), ("broken", b"\xc3(")):
            table = rows()
            table[4][2] = "HERE"
            content = text(kind.removesuffix(".gz"), table).replace(b"HERE", raw)
            says = "--encoding cp1252" if name == "windows" else "--encoding latin-1"
            yield Case(f"{name} text", f"log{kind}", packed(kind, content), 6, "title", says=says)
    for kind in JSON:
        for place_name, place in PLACES.items():
            for fault, line in (
                ("not JSON", "ann,7,Seven"),
                ("no object", "[1, 2]"),
                ("cut short", '{"user": "ann", "it'),
                (
                    "a key twice",
                    '{"user": "a", "user": "b", "item": "x", "title": "T", "time": "2020-01-01", "rating": 1}',
                ),
                ("no item", '{"user": "a", "title": "T", "time": "2020-01-01", "rating": 1}'),
                ("a list", '{"user": ["a"], "item": "x", "title": "T", "time": "2020-01-01", "rating": 1}'),
                ("true", '{"user": "a", "item": "x", "title": "T", "time": true, "rating": 1}'),
                ("infinity", '{"user": "a", "item": "x", "title": "T", "time": "2020-01-01", "rating": Infinity}'),
                ("a surrogate", '{"user": "\\ud800", "item": "x", "title": "T", "time": "2020-01-01", "rating": 1}'),
            ):
                lines = text(".jsonl", rows()).decode().splitlines()
                lines[place] = line
                column = {
                    "no item": "item",
                    "a list": "user",
                    "true": "time",
                    "infinity": "rating",
                    "a surrogate": "user",
                }
                content = packed(kind, "".join(f"{each}\n" for each in lines).encode())
                yield Case(f"{fault}, {place_name}", f"log{kind}", content, place + 1, column.get(fault))
        content = packed(kind, text(".jsonl", rows()).replace(b"Title 0", b"Caf\xe9"))
        yield Case("latin-1 text", f"log{kind}", content, 1, says="--encoding latin-1")
        content = packed(kind, json.dumps([{"user": "a"}]).encode())
        yield Case("one array", f"log{kind}", content, 1, says="object a line")


def bad_headers():
    """Columns that are missing or twice."""
    near = {"user": "User ", "item": "items", "title": "product_title", "time": "timestamp", "rating": "ratings"}
    for kind in (".csv", " semicolon.csv", ".tsv", ".jsonl", ".parquet"):
        for name, other in near.items():
            header = [other if each == name else each for each in NAMES]
            table = dict(zip(header, columns_of(rows()).values(), strict=True))
            content = table if kind == ".parquet" else text(kind, rows(), header)
            yield Case(
                f"{other!r} for {name}", f"log{kind}", content, None, name, says=f"Did you mean --{name} '?{other}"
            )
        header = ("a", "b", "c", "d", "e")
        table = dict(zip(header, columns_of(rows()).values(), strict=True))
        content = table if kind == ".parquet" else text(kind, rows(), header)
        yield Case("no such columns", f"log{kind}", content, None, "user", says="its columns are 'a', 'b'")
    for kind in SEPARATORS:
        content = text(kind, rows(), ("user", "item", "title", "user", "rating"))
        yield Case("a column twice", f"log{kind}", content, None, "user", says="2 columns")
        yield Case("header only", f"log{kind}", text(kind, []), 1, says="no row follows")
        yield Case("no header", f"log{kind}", text(kind, rows()[1:], rows()[0]), 1, "user")
        wrong = "pipe" if kind != " pipe.txt" else ";"
        yield Case("wrong --sep", f"log{kind}", text(kind, rows()), 1, None, {"sep": wrong}, "looks better")


def bad_files():
    """Files that are no such tables at all."""
    good, parquet = text(".csv", rows()), columns_of(rows())
    for kind in (*SEPARATORS, *JSON):
        yield Case("empty", f"log{kind}", packed(kind, b""), says="empty")
        yield Case("empty lines", f"log{kind}", packed(kind, b"\n\n \n"), says="empty")
        plain = text(kind.removesuffix(".gz"), rows())
        for encoding in ("utf-16", "utf-16-le", "utf-32"):
            content = packed(kind, plain.decode().encode(encoding))
            yield Case(encoding, f"log{kind}", content, 1, says="--encoding utf-(16|32)")
        if kind in SEPARATORS:
            content = packed(kind, plain.replace(b"i0", b"\0", 1))
            yield Case("a NUL", f"log{kind}", content, 2, "item", says="without control characters")
        if kind.endswith(".gz"):
            yield Case("not gzip", f"log{kind}", plain, says="not compressed by gzip")
            yield Case("gzip cut short", f"log{kind}", packed(kind, plain)[:-20], says="cut short")
            damaged = bytearray(packed(kind, plain * 50))
            damaged[60:70] = b"damaged..."
            yield Case("damaged gzip", f"log{kind}", bytes(damaged), says="damaged")
        else:
            yield Case("gzip", f"log{kind}", gzip.compress(plain), says="should end in .gz")
            yield Case("a spreadsheet", f"log{kind}", b"PK\x03\x04" + bytes(99), says="spreadsheet")
            yield Case("Parquet", f"log{kind}", b"PAR1" + bytes(99), says="Parquet")
            yield Case("not its --encoding", f"log{kind}", plain, None, options={"encoding": "utf-16"})
        yield Case("garbage", f"log{kind}", packed(kind, bytes(range(256)) * 20))
    for name in ("empty", "cut short", "text"):
        yield Case(f"Parquet {name}", "log.parquet", {"cut short": b"PAR1" + bytes(50), "text": good}.get(name, b""))
    yield Case("no rows", "log.parquet", {name: [] for name in NAMES}, says="no rows")
    for name, values in (
        ("user", [[1]] * ROWS),
        ("time", [True] * ROWS),
        ("title", [1.5] * ROWS),
        ("rating", [b"\xff"] * ROWS),
    ):
        yield Case(f"{name} {values[0]!r}", "log.parquet", parquet | {name: values}, None, name)
    for name, values in (("item", 1.5), ("rating", float("nan")), ("time", float("inf"))):
        column = [float(n) for n in range(ROWS)]
        column[4] = values
        yield Case(f"{name} {values}", "log.parquet", parquet | {name: column}, 5, name)
    yield Case("columns swapped", "log.csv", good, 2, "title", {"time": "title", "title": "time"}, "--time")
    for ending in ("xlsx", "json", "csv.zip", "pickle"):
        yield Case("another ending", f"log.{ending}", b"x", says="ends in")
    for options, says in (
        ({"sep": "::"}, "--sep"),
        ({"encoding": "latin-15"}, "--encoding"),
        ({"encoding": "base64"}, "--encoding"),
        ({"time_format": "%d.%m."}, "--time-format"),
        ({"time_format": "%Y-%Q"}, "--time-format"),
        ({"time_format": "%Y %Y"}, "--time-format"),
        ({"titles_item": "x"}, "--titles-item"),
    ):
        yield Case(f"{options}", "log.csv", good, None, options=options, says=says)


CASES = [*bad_values(), *bad_formats(), *bad_lines(), *bad_headers(), *bad_files()]
CHECKED_BEFORE_THE_FILE = ("--sep", "--encoding", "--time-format", "--titles-item")


def write(case, folder):
    file = folder / case.file
    if isinstance(case.content, dict):
        pq.write_table(pa.table(case.content), file)
    else:
        file.write_bytes(case.content)
    return file


def check(said, case, file):
    print(said.replace(f"{file.parent}/", ""))
    assert "\n" not in said
    assert str(file) in said or case.says in CHECKED_BEFORE_THE_FILE
    assert not PARSERS.search(said.replace(str(file), "")), said
    assert case.row is None or re.search(rf"\brow {case.row}\b", said), said
    assert case.column is None or f"{case.column!r}" in said, said
    assert re.search(case.says, said), said


def test_there_are_hundreds():
    assert len({(case.name, case.file) for case in CASES}) == len(CASES) > 200


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.file}: {case.name}")
def test_a_malformed_table(case, tmp_path):
    file = write(case, tmp_path)
    with pytest.raises((ValueError, TypeError, OSError)) as raised:
        prepare(Columns(file, **{"rating": "rating"} | case.options), Rules())
    check(str(raised.value), case, file)


@pytest.mark.parametrize("case", CASES[::9], ids=lambda case: f"{case.file}: {case.name}")
def test_on_the_command_line(case, tmp_path, capsys):
    file = write(case, tmp_path)
    options = {"rating": "rating"} | case.options
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    assert main(["data", "prepare", "table", "--raw", str(file), "--out", str(tmp_path / "out"), *words]) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    check(line, case, file)
    assert not (tmp_path / "out").exists()


TITLES = [
    ("no file", None, r"--titles: .*items\.csv: no such file"),
    ("empty", b"", r"items\.csv: the file is empty"),
    (
        "no item column",
        b"sku,title\ni0,A\n",
        r"items\.csv: no column 'item' \(--titles-item\); its columns are 'sku', 'title'",
    ),
    ("no title column", b"item,name\ni0,A\n", r"items\.csv: no column 'title' \(--titles-title\); its columns are"),
    ("ragged", b"item,title\ni0,A\ni1\n", r"items\.csv: row 3: found 1 column "),
    ("no id", b"item,title\ni0,A\n,B\n", r"items\.csv: row 3, column 'item': empty"),
    (
        "other ids",
        b"item,title\n1,A\n2,B\n",
        r"items\.csv: column 'item' has none of the items of .*log\.csv: found '1'",
    ),
    (
        "some untitled",
        b"item,title\ni0,A\ni2,B\n",
        r"items\.csv: 2 of 4 items have no title, as 'i1', 'i3'; --untitled",
    ),
    ("latin-1", b"item,title\ni0,Caf\xe9\n", r"items\.csv: row 2, column 'title': found the bytes e9 in .*latin-1"),
]


@pytest.mark.parametrize(("content", "said"), [case[1:] for case in TITLES], ids=[case[0] for case in TITLES])
def test_malformed_titles(tmp_path, content, said):
    (tmp_path / "log.csv").write_bytes(text(".csv", rows()))
    if content is not None:
        (tmp_path / "items.csv").write_bytes(content)
    with pytest.raises((ValueError, OSError), match=said) as raised:
        prepare(Columns(tmp_path / "log.csv", titles=tmp_path / "items.csv"), Rules())
    print(str(raised.value).replace(f"{tmp_path}/", ""))
    assert not PARSERS.search(str(raised.value).replace(str(tmp_path), ""))


@pytest.mark.parametrize("kind", [*SEPARATORS, *JSON, ".parquet"])
def test_a_folder_and_nothing_in_its_place(tmp_path, kind):
    with pytest.raises(FileNotFoundError, match=r"--raw: .*log.*no such file"):
        Columns(tmp_path / f"log{kind}")
    (tmp_path / f"log{kind}").mkdir()
    with pytest.raises(ValueError, match=r"--raw: .*log.* is a folder"):
        Columns(tmp_path / f"log{kind}")
