# SPDX-License-Identifier: Apache-2.0
"""The files of a data set are replaced as one, and nothing else in the folder is."""

import itertools
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

from patchrec_fast.cli.main import main
from patchrec_fast.data import Ids, Rules, card, generate, load, prepare, save
from tests.data.raw import LAYOUTS, Rows, movielens
from tests.kill import killed

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

NAMES = ("card.json", "items.parquet", "sequences.parquet", "titles.parquet", "users.parquet")


class Named(Rows):
    """Items under names of their own, so that there are all five files."""

    files = ()

    def items(self):
        return super().items()._replace(names=[f"item {number}" for number in range(self.rows[1].max() + 1)])


def prepared(folder, seed, version="1"):
    rng = np.random.default_rng(seed)
    rows = Named(*(rng.integers(0, high, 60) for high in (5, 12, 40)))
    card.write(prepare(rows, Rules()), folder, name="rows", files=[], version=version)
    return folder


def unmarked(folder):
    """As older versions wrote it."""
    for file in folder.iterdir():
        if file.suffix == ".parquet":
            pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)
        else:
            file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "set"}))
    return folder


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same(a, b):
    arrays = a.items.tolist() == b.items.tolist() and a.offsets.tolist() == b.offsets.tolist()
    return arrays and a.titles == b.titles and all(list(a) == list(b) for a, b in zip(own(a), own(b), strict=True))


def own(dataset):
    return dataset.item_ids, dataset.user_ids


@pytest.mark.parametrize("old", [True, False])
def test_every_mixture_of_two_sets_is_refused(tmp_path, old):
    """What a kill between any two files would leave, in any order."""
    one, other = prepared(tmp_path / "one", 1), prepared(tmp_path / "other", 2)
    assert sorted(content(one)) == list(NAMES)
    if old:
        unmarked(one)
    mixed, third = tmp_path / "mixed", content(prepared(tmp_path / "third", 3))
    for choice in itertools.product([one, other], repeat=5):
        shutil.rmtree(mixed, ignore_errors=True)
        mixed.mkdir()
        for name, folder in zip(NAMES, choice, strict=True):
            shutil.copy(folder / name, mixed)
        if len(set(choice)) == 1:
            assert same(load(mixed), load(choice[0]))
            continue
        with pytest.raises(ValueError, match="mixed: a data set that is half written, or files of several"):
            load(mixed)
        if choice[:2] == choice[3:]:  # written again it is whole; not for every one, which takes long
            prepared(mixed, 3)
            assert content(mixed) == third
            save(load(one), mixed)
            assert sorted(content(mixed)) == list(NAMES[1:])
            assert same(load(mixed), load(one))


def test_an_old_set_loads_and_is_replaced(tmp_path):
    folder = unmarked(prepared(tmp_path / "set", 1))
    assert same(load(folder), load(prepared(tmp_path / "new", 1)))
    assert content(prepared(folder, 2)) == content(prepared(tmp_path / "new", 2))


def test_cards_of_other_runs_are_other_sets(tmp_path):
    one, other = prepared(tmp_path / "one", 1, "1"), prepared(tmp_path / "other", 1, "2")
    shutil.copy(one / "card.json", other)
    with pytest.raises(ValueError, match="half written"):
        load(other)


def test_the_two_files_alone_are_enough(tmp_path):
    folder = prepared(tmp_path / "set", 1)
    for name in ("card.json", "items.parquet", "users.parquet"):
        (folder / name).unlink()
        load(folder)
    assert all(ids.same for ids in own(load(folder)))
    (folder / "sequences.parquet").unlink()
    with pytest.raises(ValueError, match="half written"):
        load(folder)


@pytest.mark.parametrize("name", ["items.parquet", "users.parquet"])
@pytest.mark.parametrize("old", [True, False])
def test_own_ids_are_not_lost_without_a_word(tmp_path, name, old):
    folder = prepared(tmp_path / "set", 1)
    if old:
        unmarked(folder)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{name} of the set is not there"):
        load(folder)


def test_own_ids_by_hand(tmp_path):
    """Beside files without a mark they are the set's; with other columns they are something else."""
    save(generate(users=3, items=12), tmp_path)
    unmarked(tmp_path)
    pq.write_table(pa.table({"user": ["a", "b", "c"]}), tmp_path / "users.parquet")
    pq.write_table(pa.table({"item": range(12), "source": range(100, 112)}), tmp_path / "items.parquet")
    dataset = load(tmp_path)
    assert list(dataset.user_ids) == ["a", "b", "c"]
    assert dataset.item_ids.of_all([11, 0]) == [111, 100]
    pq.write_table(pa.table({"user": ["a"], "age": [30]}), tmp_path / "users.parquet")
    assert load(tmp_path).user_ids.same


OWN = {"items.parquet": ("item", "source"), "users.parquet": ("user",)}


@pytest.mark.parametrize(
    ("name", "columns", "said"),
    [
        ("items.parquet", {"source": ["x"] * 12}, "items.parquet: ids: 'x' is given 12 times"),
        ("items.parquet", {"item": [1] * 12}, "items.parquet: 11 items are listed more than once"),
        ("items.parquet", {"item": range(1, 13)}, "item_ids: an item with a title has none"),
        ("items.parquet", {"source": [0.5 + n for n in range(12)]}, "column 'source' is double, expected integers or"),
        ("items.parquet", {"source": [None, *range(11)]}, "column 'source' has 1 nulls"),
        ("users.parquet", {"user": ["a", "b"]}, "user_ids: expected one for each of 3 users, got 2"),
        ("users.parquet", {"user": ["a", "b", "a"]}, "users.parquet: ids: 'a' is given 2 times"),
    ],
)
def test_own_ids_that_are_none(tmp_path, name, columns, said):
    save(generate(users=3, items=12), tmp_path)
    unmarked(tmp_path)
    good = {"item": range(12), "source": range(12), "user": range(3)}
    pq.write_table(pa.table({column: columns.get(column, good[column]) for column in OWN[name]}), tmp_path / name)
    with pytest.raises(ValueError, match=said):
        load(tmp_path)


KEYS = [
    ["a", "007", "é"],
    [7, -3, 2**40],
    [2**64 - 1, 0, 1],
    ["1", 2, "x"],  # together they are text
    [2**64, -1, 5],
]


@pytest.mark.parametrize("keys", KEYS, ids=repr)
def test_own_ids_round_trip(tmp_path, keys):
    made = generate(users=3, items=12)
    items = Ids(made.titles, [*keys, *range(1000, 1009)])
    dataset = replace(made, item_ids=items, user_ids=Ids(range(3), keys))
    save(dataset, tmp_path)
    assert same(load(tmp_path), dataset)
    save(load(tmp_path), tmp_path)
    assert same(load(tmp_path), dataset)
    save(made, tmp_path)
    assert same(load(tmp_path), made)
    assert sorted(content(tmp_path)) == ["sequences.parquet", "titles.parquet"]


@pytest.mark.parametrize(("source", "first"), [("ml-1m", 1), ("movielens", 1), ("table", 0), ("goodreads", 0)])
def test_movielens_of_an_older_version_answers_in_movie_ids(tmp_path, source, first):
    rows = Rows([0, 0, 1], [0, 4, 0], [1, 2, 3])
    card.write(prepare(rows, Rules()), tmp_path / "new", name=source, files=[], version="1")
    assert load(tmp_path / "new").item_ids.same  # a card of this version has item ids as they are
    as_it_was = json.loads((tmp_path / "new" / "card.json").read_text())
    del as_it_was["format"]
    (tmp_path / "new" / "card.json").write_text(json.dumps(as_it_was))
    dataset = load(tmp_path / "new")
    assert list(dataset.item_ids) == [first, 4 + first]
    assert dataset.item_ids.find(str(4 + first)) == 4
    assert dataset.items.tolist() == [0, 4, 0]
    save(dataset, tmp_path / "saved")  # without the card
    assert same(load(tmp_path / "saved"), dataset)


FOREIGN = {
    "card.json": b'{"made_by": "hand"}',
    "items.parquet": pa.table({"item": [1], "name": ["x"]}),
    "sequences.parquet": pa.table({"items": [[1, 2]]}),
    "titles.parquet": pa.table({"item": [1], "title": ["x"]}),
    "users.parquet": pa.table({"user": ["ann"]}),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damaged", [True, False])
def test_a_users_own_file_is_never_replaced(tmp_path, name, damaged):
    own = tmp_path / name
    if damaged or isinstance(FOREIGN[name], bytes):
        own.write_bytes(b"of the user" if damaged else FOREIGN[name])
    else:
        pq.write_table(FOREIGN[name], own)
    (tmp_path / "notes.txt").write_text("mine")
    before = content(tmp_path)
    with pytest.raises(FileExistsError, match=f"{name}: there already, and not written by patchrec_fast"):
        prepared(tmp_path, 1)
    assert content(tmp_path) == before
    if name in ("sequences.parquet", "titles.parquet"):
        with pytest.raises(FileExistsError, match=name):
            save(generate(1, 5, 20), tmp_path)
        assert content(tmp_path) == before


def test_other_files_of_the_folder_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "users.csv").write_text("mine too")
    for seed in (1, 2):
        prepared(tmp_path, seed)
    save(generate(1, 5, 20), tmp_path)
    assert sorted(content(tmp_path)) == ["notes.txt", "sequences.parquet", "titles.parquet", "users.csv"]


@pytest.mark.parametrize(
    "out", [".", "..", "../up", "../up/mine/..", "mine/../../up/.", "nowhere/..", "link", "link/", "new/a/"]
)
def test_the_folder_that_a_path_means(tmp_path, monkeypatch, out):
    """`prepare` and `save` write where the path leads, and nowhere else."""
    up = tmp_path / "up"
    prepared(up / "mine", 1)
    prepared(tmp_path / "elsewhere", 1)
    (up / "link").symlink_to("../elsewhere")
    monkeypatch.chdir(up)
    meant = (up if out == "nowhere/.." else up / out).resolve()
    before = {folder: content(folder) for folder in (up / "mine", tmp_path / "elsewhere")}
    prepared(out, 2)
    assert same(load(meant), load(prepared(tmp_path / "expected", 2)))
    for folder, was in before.items():
        assert folder.resolve() == meant or content(folder) == was
    assert (up / "link").is_symlink()
    assert not (up / "nowhere").exists()
    save(load(meant), out)
    assert same(load(meant), load(tmp_path / "expected"))


@pytest.mark.parametrize("out", ["", "file", "file/in it", "dangling/file"])
def test_a_path_that_means_no_folder(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to("file")
    for attempt in (lambda: prepared(out, 1), lambda: save(generate(1, 5, 20), out)):
        with pytest.raises((ValueError, OSError), match=r"folder: expected a path|file"):
            attempt()
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["dangling", "file"]


def sample(tmp_path, seed):
    return "data", "sample", "--users", 20, "--items", 40, "--seed", seed


def ml(tmp_path, seed):
    raw = movielens(tmp_path / f"raw{seed}", LAYOUTS[seed], [(1 + u % 3, 1 + (u * seed) % 4, 5, u) for u in range(12)],
                    {movie: f"Movie {movie} of {seed}" for movie in range(1, 5)})  # fmt: skip
    return "data", "prepare", "movielens", "--raw", raw


def table(tmp_path, seed):
    file = tmp_path / f"log{seed}.csv"
    rows = [f"u{n % 3},i{(n * seed) % 5},Title {(n * seed) % 5} of {seed},{n}" for n in range(30)]
    file.write_text("\n".join(["user,item,title,time", *rows, ""]))
    return "data", "prepare", "table", "--raw", file


@pytest.mark.parametrize(
    ("command", "before"), [(sample, "nothing"), (table, "nothing"), (sample, "marked"), (ml, "marked"), (table, "old")]
)
def test_killed_at_every_event(tmp_path, command, before, capsys):
    """The old set, the new one, or an error; then the same command ends well and leaves the same bytes."""
    out = tmp_path / "out"
    words = [str(word) for word in (*command(tmp_path, 2), "--out", out)]
    assert main(words) == 0
    wanted, new = content(out), load(out)
    old = None
    if before != "nothing":
        prepared(tmp_path / "set", 5)  # with an items.parquet, which some of the new ones lack
        old = load(unmarked(tmp_path / "set") if before == "old" else tmp_path / "set")
    for event in itertools.count(1):
        shutil.rmtree(out)
        if old is not None:
            shutil.copytree(tmp_path / "set", out)
        if not killed(event, out, *words):
            break
        try:
            found = load(out)
        except (ValueError, FileNotFoundError) as error:
            said = "half written" if old is not None or isinstance(error, ValueError) else "no such file"
            assert said in str(error)  # noqa: PT017
        else:
            assert same(found, new) or (old is not None and same(found, old))
        assert main(words) == 0
        assert content(out) == wanted
    assert event > 6
