# SPDX-License-Identifier: Apache-2.0
"""What is written beside the dataset, and that a failure leaves nothing behind."""

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from patchrec_fast.data import Columns, MovieLens, Rules, card, load, prepare, tables
from tests.data.raw import Rows, movielens

pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def source(tmp_path):
    return MovieLens(movielens(tmp_path / "raw", "100k"))


def write(source, folder, rules=None):
    rules = rules or Rules(catalogue="all")
    return card.write(prepare(source, rules), folder, name="ml-100k", files=source.files, version="1.2")


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_written(tmp_path, source):
    out = tmp_path / "new" / "out"
    written = write(source, out)
    assert sorted(tree(tmp_path / "new")) == [
        f"out/{name}" for name in ("card.json", "sequences.parquet", "titles.parquet", "users.parquet")
    ]
    assert load(out).items.tolist() == [9, 1, 2, 1, 2]
    assert pq.read_table(out / "users.parquet").to_pydict() == {"user": [7, 3]}
    shown = json.loads((out / "card.json").read_text(encoding="utf-8"))
    assert shown == json.loads(json.dumps(written))
    assert (shown["source"], shown["made_by"]) == ("ml-100k", "patchrec_fast 1.2")
    assert shown["rules"]["above_rating"] is None
    assert shown["interactions"]["read"] == 5
    assert shown["statistics"]["users"] == 2
    for group, folder in (("inputs", tmp_path / "raw"), ("outputs", out)):
        for name, found in shown[group].items():
            data = (folder / name).read_bytes()
            assert found == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert sorted(shown["inputs"]) == ["u.data", "u.item"]
    assert len(shown["outputs"]) == 3


def test_the_same_twice(tmp_path, source):
    write(source, tmp_path / "a")
    write(MovieLens(tmp_path / "raw"), tmp_path / "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_names_of_numbered_items(tmp_path, source):
    class Named(Rows):
        files = source.files

        def items(self):
            return super().items()._replace(names=["x", "y", "z"])

    rows = Named([0, 0], [2, 0], [1, 2])
    write(rows, tmp_path / "out", Rules())
    assert pq.read_table(tmp_path / "out" / "items.parquet").to_pydict() == {"item": [0, 2], "source": ["x", "z"]}
    write(source, tmp_path / "out")  # over it: these names are not of these items
    assert not (tmp_path / "out" / "items.parquet").exists()


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("step", ["table", "card"])
def test_a_full_disk_leaves_what_was_there(tmp_path, source, monkeypatch, before, step):
    out = tmp_path / "place" / "out"
    out.parent.mkdir()
    if before:
        write(source, out)
    there = tree(tmp_path / "place")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    prepared = prepare(MovieLens(tmp_path / "raw"), Rules(min_user=3))
    target = (tables.arrow()[1], "write_table") if step == "table" else (Path, "write_text")
    monkeypatch.setattr(*target, full)
    with pytest.raises(OSError, match=f"No space left.*{'sequences.parquet' if step == 'table' else 'card.json'}'"):
        card.write(prepared, out, name="x", files=source.files, version="1")
    assert tree(tmp_path / "place") == there
    assert [path.name for path in (tmp_path / "place").iterdir()] == ["out"] * before


def test_a_full_disk_in_the_middle_of_a_table(tmp_path, source, monkeypatch):
    def full(table, name, **_):
        with open(name, "wb") as file:
            file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    _, parquet = tables.arrow()
    monkeypatch.setattr(parquet, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        write(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_two_files_of_one_name_are_both_in_the_card(tmp_path):
    for folder, items in (("log", "user,item,time\nann,a,1\nann,b,2\n"), ("shop", "item,title\na,A\nb,B\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "table.csv").write_text(items)
    log = Columns(tmp_path / "log" / "table.csv", titles=tmp_path / "shop" / "table.csv")
    inputs = write(log, tmp_path / "out")["inputs"]
    assert list(inputs) == ["table.csv", "table.csv (2)"]
    assert len({entry["sha256"] for entry in inputs.values()}) == 2
