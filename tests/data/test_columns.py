# SPDX-License-Identifier: Apache-2.0
"""Any table, as CSV and as Parquet, and what can be wrong with it."""

import datetime
import gzip

import numpy as np
import pytest

from patchrec_fast.data import Columns, Rules, columns, prepare

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
        assert got.users == ["ann", "bob"]
        assert got.dataset.items.tolist() == [9, 3, 7, 5, 7]
        assert got.dataset.titles == {3: "Three, or so", 5: "Five", 7: "Seven", 9: 'A "nine" in two lines'}
        assert abs(sum(progress) - file.stat().st_size) <= 5

    def test_ratings(self, tmp_path, kind):
        got = read(write(tmp_path, kind), Rules(above_rating=2), rating="rating")
        assert got.dataset.items.tolist() == [3, 7, 5]

    def test_other_names(self, tmp_path, kind):
        file = write(tmp_path, kind, user=None, who=ROWS["user"], time=None, when=ROWS["time"])
        assert read(file, user="who", time="when").users == ["ann", "bob"]

    def test_items_that_are_no_numbers(self, tmp_path, kind):
        got = read(write(tmp_path, kind, item=["x", "x", "07", "5", "y"]))
        assert got.dataset.items.tolist() == [3, 1, 0, 2, 0]
        assert got.item_names == {0: "x", 1: "07", 2: "5", 3: "y"}

    def test_leading_zeros_are_not_lost(self, tmp_path, kind):
        got = read(write(tmp_path, kind, item=["7", "7", "07", "5", "9"]))
        assert got.item_names == {0: "7", 1: "07", 2: "5", 3: "9"}

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
    assert many.users == whole.users


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
