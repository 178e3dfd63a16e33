# SPDX-License-Identifier: Apache-2.0
"""Reading and writing the prepared format, and everything that can be wrong with a file."""

import builtins
import os

import numpy as np
import pytest

from patchrec_fast.data import Dataset, generate, load, save

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

SEQUENCES = {
    "items": pa.array([[3, 1, 2], [2]], pa.list_(pa.int32())),
    "train_first": pa.array([0, 0], pa.int32()),
    "train_last": pa.array([1, 0], pa.int32()),
    "val_first": pa.array([None, None], pa.int32()),
    "val_last": pa.array([None, None], pa.int32()),
    "test_first": pa.array([2, None], pa.int32()),
    "test_last": pa.array([2, None], pa.int32()),
}
TITLES = {"item": pa.array([1, 2, 3], pa.int32()), "title": pa.array(["a", "b", "c"])}


def write(folder, sequences=(), titles=(), drop=()):
    for name, columns, changes in (
        ("sequences", SEQUENCES, dict(sequences)),
        ("titles", TITLES, dict(titles)),
    ):
        kept = {k: v for k, v in {**columns, **changes}.items() if k not in drop}
        pq.write_table(pa.table(kept), folder / f"{name}.parquet")
    return folder


def same(a, b):
    assert a.titles == b.titles
    assert a.items.tolist() == b.items.tolist()
    assert a.offsets.tolist() == b.offsets.tolist()
    assert {k: v.tolist() for k, v in a.splits.items()} == {k: v.tolist() for k, v in b.splits.items()}


def test_load(tmp_path):
    dataset = load(write(tmp_path))
    assert len(dataset) == 2
    assert dataset.items.tolist() == [3, 1, 2, 2]
    assert dataset.items.dtype == np.int32
    assert dataset.offsets.tolist() == [0, 3, 4]
    assert dataset.titles == {1: "a", 2: "b", 3: "c"}
    assert dataset.splits["train"].tolist() == [[0, 1], [0, 0]]
    assert dataset.splits["val"].tolist() == [[-1, -1], [-1, -1]]
    assert dataset.splits["test"].tolist() == [[2, 2], [-1, -1]]


def test_wider_types_and_many_row_groups(tmp_path):
    wide = {
        "items": SEQUENCES["items"].cast(pa.large_list(pa.int64())),
        "val_first": pa.nulls(2),
        "test_last": SEQUENCES["test_last"].cast(pa.int64()),
    }
    write(tmp_path, wide, {"title": TITLES["title"].cast(pa.large_string())})
    table = pq.read_table(tmp_path / "sequences.parquet")
    pq.write_table(table, tmp_path / "sequences.parquet", row_group_size=1)
    (tmp_path / "plain").mkdir()
    same(load(tmp_path), load(write(tmp_path / "plain")))


@pytest.mark.parametrize("dataset", [generate(users=30, items=50)], ids=repr)
def test_round_trip(tmp_path, dataset):
    save(dataset, tmp_path / "new" / "folder")
    same(load(tmp_path / "new" / "folder"), dataset)
    save(dataset, tmp_path / "new" / "folder")  # over itself
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == [
        "sequences.parquet",
        "titles.parquet",
    ]


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    save(generate(users=3, items=20), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save(generate(users=5, items=20), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_saving_needs_the_three_splits(tmp_path):
    dataset = generate(users=3, items=20)
    partial = Dataset(dataset.items, dataset.offsets, dataset.titles, {"test": np.zeros((3, 2))})
    with pytest.raises(ValueError, match=r"\['train', 'val'\] are missing"):
        save(partial, tmp_path)


@pytest.mark.parametrize("name", ["sequences.parquet", "titles.parquet"])
class TestFiles:
    def test_missing(self, tmp_path, name):
        (write(tmp_path) / name).unlink()
        with pytest.raises(FileNotFoundError, match=f"{name}: no such file"):
            load(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all" * 50])
    def test_corrupt(self, tmp_path, name, content):
        (write(tmp_path) / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: not a readable Parquet file"):
            load(tmp_path)

    def test_damaged(self, tmp_path, name):
        file = write(tmp_path) / name
        file.write_bytes(file.read_bytes()[:-20])
        with pytest.raises(ValueError, match=f"{name}: not a readable Parquet file"):
            load(tmp_path)

    def test_no_rows(self, tmp_path, name):
        file = write(tmp_path) / name
        pq.write_table(pq.read_table(file).slice(0, 0), file)
        with pytest.raises(ValueError, match=f"{name}: no rows"):
            load(tmp_path)


@pytest.mark.parametrize("column", [*SEQUENCES, *TITLES])
def test_missing_column(tmp_path, column):
    with pytest.raises(ValueError, match=f"no column '{column}', it has"):
        load(write(tmp_path, drop=[column]))


INT = pa.int32()


@pytest.mark.parametrize(
    ("sequences", "titles", "message"),
    [
        ({"items": [[2.0], [1.5]]}, {}, r"column 'items' does not fit int32 \(1.5 at 1,"),
        ({"items": [1, 2]}, {}, "column 'items' is int64, expected list<int32>"),
        ({"items": [[1, None], [2]]}, {}, "column 'items' holds 1 nulls"),
        ({"items": [[1], None]}, {}, "column 'items' has 1 nulls"),
        ({"items": [[1], []]}, {}, "the user in row 1 has no items"),
        ({"items": [[2**40], [1]]}, {}, "column 'items' does not fit int32"),
        (
            {"items": [[1, 9, 2], [8]]},
            {},
            "titles: 2 items of users have none, the first is 8",
        ),
        ({"test_first": ["x", "y"]}, {}, "column 'test_first' is string, expected int32"),
        ({"test_first": pa.array([None, None], INT)}, {}, "row 0 are -1, 2, expected 0 <= first"),
        ({"test_first": pa.array([3, None], INT)}, {}, "row 0 are 3, 2, expected"),
        ({"train_last": pa.array([3, 0], INT)}, {}, r"row 0 are 0, 3, expected .* < 3"),
        ({"train_first": pa.array([0, -2], INT)}, {}, "row 1 are -2, 0, expected"),
        ({}, {"item": ["1", "2", "3"]}, "column 'item' is string, expected int32"),
        ({}, {"item": pa.array([1, None, 3], INT)}, "column 'item' has 1 nulls"),
        ({}, {"item": pa.array([1, 2, 2], INT)}, "1 items are listed more than once"),
        ({}, {"title": [1, 2, 3]}, "column 'title' is int64, expected string"),
        ({}, {"title": ["a", None, "c"]}, "column 'title' has 1 nulls"),
    ],
)
def test_bad_columns(tmp_path, sequences, titles, message):
    with pytest.raises(ValueError, match=message):
        load(write(tmp_path, sequences, titles))


def test_without_pyarrow(tmp_path, monkeypatch):
    write(tmp_path)
    real = builtins.__import__

    def refuse(name, *rest):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install pyarrow"):
        load(tmp_path)


@pytest.mark.parametrize(
    "items",
    [
        pa.array([[3, 1, 2], [2]], kind(of()))
        for kind in (pa.list_, pa.large_list, pa.list_view, pa.large_list_view)
        for of in (pa.int8, pa.uint8, pa.int64, pa.uint64, pa.float64)
    ],
    ids=lambda column: str(column.type),
)
@pytest.mark.parametrize(
    "text", [pa.string_view(), pa.binary(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
)
def test_other_types_that_hold_the_same(tmp_path, items, text):
    titles = {"title": TITLES["title"].cast(text), "item": pa.array([1, 2, 3], pa.uint64())}
    (tmp_path / "plain").mkdir()
    same(load(write(tmp_path, {"items": items}, titles)), load(write(tmp_path / "plain")))


@pytest.mark.parametrize(
    ("sequences", "titles", "said"),
    [
        (
            {"val_first": pa.array([1, None], INT), "val_last": pa.array([2, None], INT)},
            {},
            "of the user in row 0 train has the positions 0 to 1 and val 1 to 2",
        ),
        ({}, {"title": ["a", "", "c"]}, r"titles: item 2 has a title that shows nothing, ''"),
        ({}, {"title": ["a", " \t", "c"]}, r"titles: item 2 has a title that shows nothing"),
        ({}, {"title": ["a", "b", "\x1b\x07"]}, r"titles: item 3 has a title that shows nothing, '\\x1b\\x07'"),
        ({"items": [[3, 1, -1], [2]]}, {}, "items: expected whole numbers from 0 to 2147483647, got -1 at 2"),
        ({}, {"item": [1, 2, -3]}, "titles: expected item ids from 0 to 2147483647, got -3"),
        (
            {},
            {"item": pa.array([1, 2, 2**64 - 1], pa.uint64())},
            "'item' does not fit int32 .18446744073709551615 at 2",
        ),
    ],
)
def test_what_no_dataset_holds(tmp_path, sequences, titles, said):
    with pytest.raises(ValueError, match=said) as raised:
        load(write(tmp_path, sequences, titles))
    assert str(tmp_path) in str(raised.value)


def test_a_flipped_bit_is_seen(tmp_path):
    """Or it is in what does not matter; without checksums some of these load as another data set."""
    dataset = generate(users=5, items=20)
    save(dataset, tmp_path)
    file = tmp_path / "sequences.parquet"
    data, refused = file.read_bytes(), 0
    for place in range(0, len(data), 17):
        file.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        try:
            found = load(tmp_path)
        except ValueError:
            refused += 1
        else:
            same(found, dataset)
    assert refused
