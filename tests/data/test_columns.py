# SPDX-License-Identifier: Apache-2.0
"""Any table, as CSV and as Parquet, and what can be wrong with it."""

import datetime
import decimal
import gzip

import numpy as np
import pytest

from patchrec_fast.data import Columns, Rules, card, columns, prepare

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROWS = {
    "user": ["ann", "bob", "ann", "bob", "ann"],
    "item": [7, 7, 3, 5, 9],
    "title": ["Seven", None, "Three, or so", " Five ", 'A "nine"\nin two lines'],
    "time": [30, 10, 20, 5, 10],
    "rating": [4.5, 1.0, 5.0, 3.0, 2.0],
}
KINDS = (".csv", ".csv.gz", ".parquet")


def write(folder, kind, **changes):
    """The rows with these columns changed, or dropped where the change is None."""
    rows = {name: values for name, values in {**ROWS, **changes}.items() if values is not None}
    file = folder / f"table{kind}"
    if kind == ".parquet":
        pq.write_table(pa.table(rows), file, row_group_size=2)
        return file
    lines = [",".join(rows)]
    for row in zip(*rows.values(), strict=True):
        lines.append(",".join(_quoted("" if cell is None else str(cell)) for cell in row))
    text = ("\n".join(lines) + "\n").encode()
    file.write_bytes(gzip.compress(text) if kind == ".csv.gz" else text)
    return file


def _quoted(cell):
    return '"' + cell.replace('"', '""') + '"' if set(cell) & set(',"\n') else cell


def read(file, rules=None, **names):
    return prepare(Columns(file, **names), rules or Rules())


@pytest.mark.parametrize("kind", KINDS)
class TestKinds:
    def test_all_of_it(self, tmp_path, kind):
        progress = []
        file = write(tmp_path, kind)
        got = prepare(Columns(file), Rules(), progress.append)
        assert list(got.dataset.user_ids) == ["ann", "bob"]
        assert got.dataset.items.tolist() == [9, 3, 7, 5, 7]
        assert got.dataset.titles == {3: "Three, or so", 5: "Five", 7: "Seven", 9: 'A "nine" in two lines'}
        assert abs(sum(progress) - file.stat().st_size) <= 5

    def test_ratings(self, tmp_path, kind):
        got = read(write(tmp_path, kind), Rules(above_rating=2), rating="rating")
        assert got.dataset.items.tolist() == [3, 7, 5]

    def test_other_names(self, tmp_path, kind):
        file = write(tmp_path, kind, user=None, who=ROWS["user"], time=None, when=ROWS["time"])
        assert list(read(file, user="who", time="when").dataset.user_ids) == ["ann", "bob"]

    def test_items_that_are_no_numbers(self, tmp_path, kind):
        got = read(write(tmp_path, kind, item=["x", "x", "07", "5", "y"]))
        assert got.dataset.items.tolist() == [3, 1, 0, 2, 0]
        assert list(got.dataset.item_ids) == ["x", "07", "5", "y"]

    def test_leading_zeros_are_not_lost(self, tmp_path, kind):
        got = read(write(tmp_path, kind, item=["7", "7", "07", "5", "9"]))
        assert list(got.dataset.item_ids) == ["7", "07", "5", "9"]

    @pytest.mark.parametrize("item", [-1, 2**31])
    def test_items_that_do_not_fit(self, tmp_path, kind, item):
        got = read(write(tmp_path, kind, item=[7, 7, item, 5, 9]))
        assert got.dataset.items.tolist() == [3, 1, 0, 2, 0]

    @pytest.mark.parametrize(
        "times",
        [
            [datetime.date(2020, 1, day) for day in (30, 10, 20, 5, 10)],
            [datetime.datetime(2020, 1, 1, 0, 0, second) for second in (30, 10, 20, 5, 10)],
            [f"2020-01-01T00:00:{second:02}Z" for second in (30, 10, 20, 5, 10)],
            [f"2020-01-01 00:00:00.{part:03}" for part in (30, 10, 20, 5, 10)],
            [30.0, 10.0, 20.0, 5.0, 10.0],
        ],
        ids=lambda times: repr(times[0]),
    )
    def test_times(self, tmp_path, kind, times):
        assert read(write(tmp_path, kind, time=times)).dataset.items.tolist() == [9, 3, 7, 5, 7]

    @pytest.mark.parametrize("name", ["user", "item", "time", "rating"])
    def test_a_missing_value(self, tmp_path, kind, name):
        values = [*ROWS[name][:3], None, ROWS[name][4]]
        with pytest.raises(ValueError, match=f"row {4 if kind == '.parquet' else 5} has no '{name}'"):
            read(write(tmp_path, kind, **{name: values}), rating="rating")

    @pytest.mark.parametrize("name", ["user", "item", "title", "time", "rating"])
    def test_a_missing_column(self, tmp_path, kind, name):
        with pytest.raises(ValueError, match=f"table{kind}: expected one column '{name}', got the columns"):
            read(write(tmp_path, kind, **{name: None}), rating="rating")

    @pytest.mark.parametrize("times", [["soon"] * 5, [1.5, 2, 3, 4, 5], [True] * 5], ids=repr)
    def test_times_that_are_none(self, tmp_path, kind, times):
        with pytest.raises(ValueError, match=f"table{kind}: "):
            read(write(tmp_path, kind, time=times))

    @pytest.mark.parametrize("rating", [float("nan"), float("inf")])
    def test_a_rating_that_is_none(self, tmp_path, kind, rating):
        with pytest.raises(ValueError, match=f"row {3 if kind == '.parquet' else 4} has a rating that is not finite"):
            read(write(tmp_path, kind, rating=[1.0, 2.0, rating, 4.0, 5.0]), rating="rating")

    def test_no_rows(self, tmp_path, kind):
        empty = (
            {name: pa.array(values)[:0] for name, values in ROWS.items()}
            if kind == ".parquet"
            else {name: [] for name in ROWS}
        )
        with pytest.raises(ValueError, match=f"table{kind}"):
            read(write(tmp_path, kind, **empty))

    def test_a_file_cut_short(self, tmp_path, kind):
        file = write(tmp_path, kind, title=["a"] * 5)
        file.write_bytes(file.read_bytes()[:-8])
        with pytest.raises(ValueError, match=f"table{kind}: "):
            read(file)

    def test_no_text(self, tmp_path, kind):
        file = write(tmp_path, kind)
        file.write_bytes(b"\xff\xfe\x00\x01" * 100)
        with pytest.raises(ValueError, match=f"table{kind}: "):
            read(file)


@pytest.fixture
def small(monkeypatch):
    """Batches of a few rows."""
    monkeypatch.setattr(columns, "BLOCK", 60)
    monkeypatch.setattr(columns, "_ROWS", 2)


@pytest.mark.parametrize("kind", KINDS)
class TestSmallBatches:
    @pytest.fixture
    def rows(self, small):
        ids = list(range(40))
        titles = [f'The "{item}"\nin two, or more, lines' for item in ids]
        return {"user": ids, "item": ids, "title": titles, "time": ids, "rating": None}

    def test_lines_inside_of_values(self, tmp_path, kind, rows):
        got = read(write(tmp_path, kind, **rows))
        assert got.dataset.titles == {item: f'The "{item}" in two, or more, lines' for item in range(40)}
        assert got.cleaned == 40

    def test_the_first_title_stays(self, tmp_path, kind, rows):
        changes = {"item": [0] * 40, "title": [None] + [f"title {n}" for n in range(1, 40)]}
        assert read(write(tmp_path, kind, **rows | changes)).dataset.titles == {0: "title 1"}

    def test_the_row_of_an_error(self, tmp_path, kind, rows):
        changes = {"user": [*range(30), None, *range(9)]}
        with pytest.raises(ValueError, match=f"row {31 if kind == '.parquet' else 32} has no 'user'"):
            read(write(tmp_path, kind, **rows | changes))


@pytest.mark.parametrize("kind", KINDS)
def test_many_batches(tmp_path, kind, monkeypatch):
    rng = np.random.default_rng(0)
    n = 3000
    users, items, times = rng.integers(0, 40, n), rng.integers(0, 300, n), rng.integers(0, 999, n)
    titles = [f"title {item}" if rng.random() < 0.9 else None for item in items]
    changes = {"user": users.tolist(), "item": items.tolist(), "time": times.tolist(), "title": titles, "rating": None}
    file = write(tmp_path, kind, **changes)
    whole = read(file)
    monkeypatch.setattr(columns, "BLOCK", 500)
    monkeypatch.setattr(columns, "_ROWS", 64)
    many = read(file)
    assert many.dataset.items.tolist() == whole.dataset.items.tolist()
    assert many.dataset.titles == whole.dataset.titles == {item: f"title {item}" for item in set(items.tolist())}
    assert list(many.dataset.user_ids) == list(whole.dataset.user_ids)


@pytest.mark.parametrize("line", ["ann,7,Seven", "ann,7,Seven,9,9,9", "ann,7,Seven,later,1"])
def test_a_bad_line_of_csv(tmp_path, line):
    file = write(tmp_path, ".csv", title=["a"] * 5)
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(ValueError, match=r"table\.csv: .*(#7|later)"):
        read(file)


def test_categories(tmp_path):
    changes = {name: pa.array(ROWS[name]).dictionary_encode() for name in ("user", "item", "title")}
    got = read(write(tmp_path, ".parquet", **changes))
    assert got.dataset.items.tolist() == [9, 3, 7, 5, 7]
    assert got.dataset.titles[7] == "Seven"


def test_text_that_is_not_utf8(tmp_path):
    file = write(tmp_path, ".csv")
    file.write_bytes(file.read_bytes().replace(b"Seven", b"S\xe9ven"))
    with pytest.raises(ValueError, match=r"table\.csv: .*UTF8"):
        read(file)


@pytest.mark.parametrize("name", ["user", "item", "title", "rating"])
def test_a_column_of_the_wrong_type(tmp_path, name):
    file = write(tmp_path, ".parquet", **{name: [datetime.date(2020, 1, 1)] * 5})
    with pytest.raises(ValueError, match=f"column '{name}' is date32"):
        read(file, rating="rating")


def test_files_that_cannot_be(tmp_path):
    with pytest.raises(ValueError, match=r"file: expected \.csv"):
        Columns(tmp_path / "table.xlsx")
    with pytest.raises(FileNotFoundError, match="no such file"):
        Columns(tmp_path / "table.csv")


def polars_like(values):
    return pa.array(values, pa.string_view())


TEXTS = ["7", "7", "3", "5", "9"]
DECIMAL = decimal.Decimal


@pytest.mark.parametrize(
    "items",
    [
        *[pa.array(TEXTS).cast(kind) for kind in (pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary())],
        pa.array(TEXTS).cast(pa.binary()).cast(pa.binary_view()),
        pa.array([text.encode() for text in TEXTS], pa.binary(1)),
        pa.array(TEXTS).dictionary_encode(),
        pa.DictionaryArray.from_arrays(pa.array([3, 3, 0, 1, 2], pa.uint8()), pa.array(["3", "5", "9", "7"])),
        *[pa.array([7, 7, 3, 5, 9], kind()) for kind in (pa.int8, pa.uint8, pa.int16, pa.uint32, pa.int64, pa.uint64)],
        *[pa.array([7, 7, 3, 5, 9], kind()) for kind in (pa.float32, pa.float64)],
        pa.array(np.array([7, 7, 3, 5, 9], np.float16)),
        pa.array([DECIMAL(n) for n in (7, 7, 3, 5, 9)], pa.decimal128(5, 2)),
        pa.array([DECIMAL(n) for n in (7, 7, 3, 5, 9)], pa.decimal256(40, 0)),
    ],
    ids=lambda column: str(column.type),
)
def test_ids_of_any_type_that_holds_them(tmp_path, items):
    title = ["Seven", None, "Three", "Five", "Nine"]
    for titles in (title, polars_like(title), pa.array(title).dictionary_encode(), pa.array(title, pa.large_string())):
        got = read(write(tmp_path, ".parquet", item=items, title=titles))
        assert got.dataset.items.tolist() == [9, 3, 7, 5, 7]
        assert got.dataset.titles == {3: "Three", 5: "Five", 7: "Seven", 9: "Nine"}
        assert got.dataset.item_ids.same


@pytest.mark.parametrize(
    ("items", "said"),
    [
        (pa.array([7, 7, 3, 5.5, 9]), "row 4 has 'item' '5.5', expected a whole number"),
        (pa.array([7, 7, 3, 5, float("nan")]), "row 5 has 'item' 'nan'"),
        (pa.array([7, 7, 1e300, 5, 9]), r"row 3 has 'item' '1e\+300'"),
        (pa.array([DECIMAL("7.5")] * 5), r"row 1 has 'item' '7\.5"),
        (pa.array([True] * 5), "column 'item' is bool, expected integers or text"),
        (pa.array([[1]] * 5), "column 'item' is list<"),
        (pa.array([1, 2, 3, 4, 5], pa.duration("s")), "column 'item' is duration"),
        (pa.array([b"\xff"] * 5), "column 'item', binary: Invalid UTF8"),
        (pa.nulls(5), "row 1 has no 'item'"),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_ids_that_are_none(tmp_path, items, said):
    with pytest.raises(ValueError, match=rf"table\.parquet: {said}"):
        read(write(tmp_path, ".parquet", item=items))


@pytest.mark.parametrize("ids", [[2**63, 2**64 - 1, 1, 2, 3], [-(2**63), -1, 1, 2, 3], [2**31, 1, 2, 3, 4]])
def test_ids_of_64_bits_keep_their_names(tmp_path, ids):
    kind = pa.uint64() if max(ids) >= 2**63 else pa.int64()
    got = read(write(tmp_path, ".parquet", item=pa.array(ids, kind), user=pa.array(ids, kind), title=["t"] * 5))
    assert list(got.dataset.item_ids) == ids
    assert sorted(got.dataset.user_ids) == sorted(ids)
    card.write(got, tmp_path / "out", name="x", files=[], version="1")
    names = [pq.read_table(tmp_path / "out" / name)[column].to_pylist() for name, column in NAMED]
    assert [list(map(int, column)) for column in names] == [list(got.dataset.user_ids), ids]


NAMED = (("users.parquet", "user"), ("items.parquet", "source"))
MOMENTS = [datetime.datetime(2020, 1, 1, 0, 0, second) for second in (30, 10, 20, 5, 10)]


@pytest.mark.parametrize(
    "times",
    [
        *[pa.array(MOMENTS, pa.timestamp(unit, zone)) for unit in ("s", "ms", "us", "ns")
          for zone in (None, "UTC", "Europe/Berlin", "+05:30")],
        pa.array([datetime.date(1 + second, 1, 1) for second in (30, 10, 20, 5, 10)], pa.date64()),
        pa.array([datetime.datetime(9000 + second, 1, 1) for second in (30, 10, 20, 5, 10)], pa.timestamp("s")),
        pa.array([2**60 + second for second in (30, 10, 20, 5, 10)], pa.timestamp("ns")),  # nearer than microseconds
        pa.array([DECIMAL(second) for second in (30, 10, 20, 5, 10)]),
        pa.array([30, 10, 20, 5, 10], pa.uint8()),
        polars_like([f"2020-01-01 00:00:{second:02}" for second in (30, 10, 20, 5, 10)]),
        pa.array([f"{second}" for second in (30, 10, 20, 5, 10)]).dictionary_encode(),
        pa.array([f"2020-01-01T00:00:{second:02}{part}" for second, part in
                  ((30, ""), (10, ".123456789"), (20, ".1"), (5, ""), (10, ".123456789"))]),
    ],
    ids=lambda times: f"{times.type} {times[0]}",
)  # fmt: skip
def test_times_of_any_type_that_holds_them(tmp_path, times):
    assert read(write(tmp_path, ".parquet", time=times)).dataset.items.tolist() == [9, 3, 7, 5, 7]


@pytest.mark.parametrize(
    "kind", [pa.duration("s"), pa.time32("s"), pa.time64("us"), pa.bool_(), pa.list_(pa.int64())], ids=str
)
def test_times_of_a_type_that_holds_none(tmp_path, kind):
    values = {"bool": [True] * 5, "list<item: int64>": [[1]] * 5}.get(str(kind), [1] * 5)
    with pytest.raises(ValueError, match=r"column 'time' is .*, expected whole numbers, dates, timestamps or text"):
        read(write(tmp_path, ".parquet", time=pa.array(values, kind)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("values", "place", "expected"),
    [
        (["01/02/2020", "2020-01-01", "2020-01-01", "2020-01-01"], 0, "a whole number or ISO 8601, as 2020-01-31"),
        (["2020-01-01", "2020-01-02", "01/02/2020", "2020-01-01"], 2, "ISO 8601 without a zone, as in the first row"),
        (["2020-01-01", "2020-02-30", "x", "2020-01-01"], 1, "ISO 8601 without a zone"),
        (["2020-01-01", "2020-01-02", "2020-01-01", "7"], 3, "ISO 8601 without a zone"),
        (["2020-01-01T00:00:00Z", "2020-01-02T00:00:00", "x", "x"], 1, "ISO 8601 with a zone"),
        (["5", "6", "7", "2020-01-01"], 3, "a whole number, as in the first row"),
        (["5", "6.5", "7", "x"], 1, "a whole number, as in the first row"),
        (["5.0", "6.0", "7.5", "8"], 2, "a whole number, as in the first row"),
        (["", "x", "x", "x"], None, "has no 'time'"),
    ],
)
@pytest.mark.parametrize("block", [None, 2])
def test_a_time_that_is_none_is_named(tmp_path, monkeypatch, kind, values, place, expected, block):
    if block:
        monkeypatch.setattr(columns, "BLOCK", 45)
        monkeypatch.setattr(columns, "_ROWS", block)
    times = [value or None for value in values]
    file = write(tmp_path, kind, user=["a"] * 4, item=[1, 2, 3, 4], title=["t"] * 4, time=times, rating=None)
    first = 1 if kind == ".parquet" else 2
    with pytest.raises(ValueError, match=rf"table\{kind}: row") as raised:
        read(file)
    if place is None:
        assert f"row {first} has no 'time'" in str(raised.value)
    else:
        assert f"row {first + place} has 'time' {values[place]!r}, expected {expected}" in str(raised.value)


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("rating", ["good", "4,5", "nan", "1e999"])
def test_a_rating_of_csv_that_is_none_is_named(tmp_path, kind, rating):
    with pytest.raises(ValueError, match=rf"table\{kind}: row 4 has .*'{rating}'"):
        read(write(tmp_path, kind, rating=[1, 2, rating, 4, 5]), rating="rating")


@pytest.mark.parametrize("kind", KINDS)
def test_a_title_is_the_first_that_shows_something(tmp_path, kind):
    got = read(write(tmp_path, kind, item=[1] * 5, title=["\x1b\x07", " ", "\u200b", "a\x1b[2J\tb", "later"]))
    assert got.dataset.titles == {1: "a[2J b"}
    assert got.cleaned == 1


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('a,1,"T\nb,2,U,2\nc,3,V,3\n', 2),
        ('a,1,T,1\nb,2,"U\nc,3,"V,3\n', 3),
        ('a,1,T,1\nb,2,"U\nand more",2\nc,3,"V\n', 5),
    ],
)
def test_unbalanced_quotes(tmp_path, packed, text, line):
    """Arrow takes the rows up to the next quote for one value, without a word."""
    text = ("user,item,title,time\n" + text).encode()
    file = tmp_path / f"table.csv{'.gz' if packed else ''}"
    file.write_bytes(gzip.compress(text) if packed else text)
    with pytest.raises(
        ValueError, match=rf"table\.csv.*: (the row from line {line} on has unbalanced quotes|CSV parse)"
    ):
        read(file)


def test_a_long_value_of_several_lines(tmp_path):
    long = "x" * 200_000 + "\n" + "y" * 200_000
    assert read(write(tmp_path, ".csv", title=[long] * 5)).dataset.titles[7] == long.replace("\n", " ")
