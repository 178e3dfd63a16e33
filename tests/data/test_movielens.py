# SPDX-License-Identifier: Apache-2.0
"""The three layouts of MovieLens, everything that can be wrong with a file, and the paper's own sets from the raw."""

import re

import numpy as np
import pytest

from patchrec_fast.data import RULES, MovieLens, Rules, blocks, load, prepare
from tests.data.raw import LAYOUTS, MOVIES, RATINGS, TITLES, movielens

pytest.importorskip("pyarrow")
ALL = Rules(catalogue="all")
NAMES = {"100k": ("u.data", "u.item"), "dat": ("ratings.dat", "movies.dat"), "csv": ("ratings.csv", "movies.csv")}


def sequences(prepared):
    parts = np.split(prepared.dataset.items, prepared.dataset.offsets[1:-1])
    return dict(zip(prepared.dataset.user_ids, (part.tolist() for part in parts), strict=True))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("layout", LAYOUTS)
class TestLayouts:
    def test_all_of_it(self, tmp_path, layout, end):
        got = prepare(MovieLens(movielens(tmp_path, layout, end=end)), ALL)
        assert sequences(got) == {7: [9, 1, 2], 3: [1, 2]}
        assert got.dataset.titles == TITLES
        assert got.dataset.item_ids.same

    def test_blocks_smaller_than_the_file(self, tmp_path, layout, end, monkeypatch):
        rng = np.random.default_rng(0)
        rows = [(int(u), int(m), 4, int(t)) for u, m, t in rng.integers(1, 1000, (300, 3))]
        movies = {movie: f"Film {movie} (1990)" for movie in range(1, 1000)}
        folder = movielens(tmp_path, layout, rows, movies, end=end)
        whole = prepare(MovieLens(folder), ALL)
        read = []
        monkeypatch.setattr(blocks.blocks, "__defaults__", (50,))
        small = prepare(MovieLens(folder), ALL, read.append)
        assert sequences(small) == sequences(whole)
        assert len(read) > 50
        assert sum(read) == (folder / NAMES[layout][0]).stat().st_size


@pytest.mark.parametrize("layout", LAYOUTS)
class TestErrors:
    @pytest.mark.parametrize(
        "row",
        [
            (3, 1, 4),
            (3, 1, 4, 5, 6),
            ("x", 1, 4, 5),
            (0, 1, 4, 5),
            (-3, 1, 4, 5),
            (3, 10**9, 4, 5),
            (3, 1.5, 4, 5),
            (3, 1, "", 5),
            (3, 1, "nan", 5),
            (3, 1, "inf", 5),
            (3, 1, 4, "1e9"),
            (3, 1, 4, "NA"),
            (3, 1, 4, 10**30),
            ("",),
            ("\x00",),
        ],
        ids=repr,
    )
    def test_a_bad_line_is_named(self, tmp_path, layout, row):
        rows = [*RATINGS, row, *RATINGS]
        line = len(RATINGS) + (2 if layout == "csv" else 1)
        name = NAMES[layout][0]
        with pytest.raises(ValueError, match=f"{name}: line {line} is '.*', expected user"):
            prepare(MovieLens(movielens(tmp_path, layout, rows)), ALL)

    def test_a_bad_line_in_a_later_block(self, tmp_path, layout, monkeypatch):
        monkeypatch.setattr(blocks.blocks, "__defaults__", (40,))
        rows = [(1, movie, 4, 5) for movie in range(1, 90)]
        rows[70] = (1, "bad", 4, 5)
        with pytest.raises(ValueError, match=f"line {72 if layout == 'csv' else 71} is"):
            prepare(MovieLens(movielens(tmp_path, layout, rows)), ALL)

    @pytest.mark.parametrize("cut", [1, 2, 5, 6])
    def test_ratings_cut_short(self, tmp_path, layout, cut):
        file = movielens(tmp_path, layout) / NAMES[layout][0]
        file.write_bytes(file.read_bytes()[:-cut])
        line = len(RATINGS) + (layout == "csv")
        with pytest.raises(ValueError, match=rf"line {line} does not end with a newline, the file may be cut short"):
            prepare(MovieLens(tmp_path), ALL)

    def test_movies_cut_short(self, tmp_path, layout):
        file = movielens(tmp_path, layout) / NAMES[layout][1]
        file.write_bytes(file.read_bytes()[:-3])
        with pytest.raises(ValueError, match=f"line {len(MOVIES) + (layout == 'csv')} does not end with a newline"):
            prepare(MovieLens(tmp_path), ALL)

    @pytest.mark.parametrize("which", [0, 1])
    def test_an_empty_file(self, tmp_path, layout, which):
        file = movielens(tmp_path, layout) / NAMES[layout][which]
        file.write_bytes(b"")
        with pytest.raises(ValueError, match=f"{file.name}: (no interactions|the file is empty)"):
            prepare(MovieLens(tmp_path), ALL)

    def test_utf16(self, tmp_path, layout):
        with pytest.raises(ValueError, match="line 1 is"):
            prepare(MovieLens(movielens(tmp_path, layout, encoding="utf-16")), ALL)

    def test_a_movie_listed_twice(self, tmp_path, layout):
        file = movielens(tmp_path, layout) / NAMES[layout][1]
        file.write_bytes(file.read_bytes() + file.read_bytes().splitlines(True)[-1])
        line = len(MOVIES) + 1 + (layout == "csv")
        with pytest.raises(ValueError, match=rf"line {line}: movie 4 is listed a second time"):
            prepare(MovieLens(tmp_path), ALL)

    def test_a_bad_line_of_movies(self, tmp_path, layout):
        file = movielens(tmp_path, layout) / NAMES[layout][1]
        file.write_bytes(file.read_bytes() + b"some text\n")
        with pytest.raises(ValueError, match=f"{file.name}: line {len(MOVIES) + 1 + (layout == 'csv')} "):
            prepare(MovieLens(tmp_path), ALL)

    def test_a_movie_without_a_title(self, tmp_path, layout):
        folder = movielens(tmp_path, layout, movies={1: "A (1990)", 2: "B (1990)"})
        with pytest.raises(ValueError, match="1 items have no title, the first is 9;"):
            prepare(MovieLens(folder), ALL)

    def test_half_of_the_pair(self, tmp_path, layout):
        ratings, movies = NAMES[layout]
        (movielens(tmp_path, layout) / movies).unlink()
        with pytest.raises(FileNotFoundError, match=f"has {ratings} but no {movies}"):
            MovieLens(tmp_path)


def test_no_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape("no MovieLens files there")):
        MovieLens(tmp_path)


def test_latin1_bytes_that_some_take_for_ends_of_lines(tmp_path):
    folder = movielens(tmp_path, "dat", movies={1: "A\x85B\x1c (1990)", 2: "Misérables", 9: "C"})
    assert prepare(MovieLens(folder), ALL).dataset.titles == {1: "A B", 2: "Misérables", 9: "C"}


def test_ten_million_is_utf8_in_the_layout_of_one(tmp_path):
    folder = movielens(tmp_path, "dat", [(1, 2, 4.5, 9), (1, 9, 0.5, 8)], encoding="utf-8")
    got = prepare(MovieLens(folder), Rules(above_rating=4))
    assert got.dataset.titles == {2: "Misérables, Les"}


def test_latin1_is_refused_where_utf8_is_the_rule(tmp_path):
    with pytest.raises(ValueError, match=r"movies\.csv: line 3 is not UTF-8"):
        prepare(MovieLens(movielens(tmp_path, "csv", encoding="latin-1")), ALL)


@pytest.mark.parametrize("line", ["1:9:2::5::30", "1::2:9:5::30", "1::2::5:9:30", "1:: ::2::5::30"])
def test_single_colons_are_no_separators(tmp_path, line):
    file = movielens(tmp_path, "dat") / "ratings.dat"
    file.write_text(line + "\n")
    with pytest.raises(ValueError, match=r"ratings\.dat: line 1 is"):
        prepare(MovieLens(tmp_path), ALL)


@pytest.mark.parametrize("which", [0, 1])
def test_a_wrong_header(tmp_path, which):
    file = movielens(tmp_path, "csv") / NAMES["csv"][which]
    file.write_bytes(file.read_bytes().replace(b"movieId", b"movie", 1))
    with pytest.raises(ValueError, match=f"{file.name}: line 1 is '.*', expected '"):
        prepare(MovieLens(tmp_path), ALL)


def test_a_quote_that_is_not_closed(tmp_path):
    file = movielens(tmp_path, "csv") / "movies.csv"
    file.write_bytes(file.read_bytes() + b'77,"Open,Drama\n')
    with pytest.raises(ValueError, match=r"movies\.csv: line \d+: unexpected end of data"):
        prepare(MovieLens(tmp_path), ALL)


def same_as_the_paper(got, paper):
    """The paper's numbers are movie ids minus 1."""
    assert list(got.dataset.user_ids) == list(dict.fromkeys(got.dataset.user_ids))
    assert got.dataset.titles == {number + 1: title for number, title in paper.titles.items()}
    assert got.dataset.offsets.tolist() == paper.offsets.tolist()
    for name, ends in paper.splits.items():
        assert got.dataset.splits[name].tolist() == ends.tolist()
    for begin, end in zip(paper.offsets, paper.offsets[1:], strict=False):
        assert set(got.dataset.items[begin:end].tolist()) == set((paper.items[begin:end] + 1).tolist())


class TestReal:
    def test_100k(self, data_dir):
        got = prepare(MovieLens(data_dir / "raw" / "ml-100k"), RULES["ml-100k"])
        assert (len(got.dataset), len(got.dataset.items), len(got.dataset.titles)) == (682, 51_824, 1_682)
        same_as_the_paper(got, load(data_dir / "ml-100k"))

    def test_1m(self, data_dir):
        got = prepare(MovieLens(data_dir / "raw" / "ml-1m"), RULES["movielens"])
        assert (len(got.dataset), len(got.dataset.items), len(got.dataset.titles)) == (6_038, 575_281, 3_883)
        paper = load(data_dir / "ml-1m")
        same_as_the_paper(got, paper)
        # the paper's order differs inside equal times only: both are sorted by the time in the raw file
        rows = (data_dir / "raw" / "ml-1m" / "ratings.dat").read_bytes().replace(b"::", b" ").split()
        users, movies, _, times = np.array(rows, np.int64).reshape(-1, 4).T
        keys = users * 4000 + movies
        order = np.argsort(keys)
        owner = np.repeat(np.array(list(got.dataset.user_ids)), np.diff(got.dataset.offsets))
        of = {
            name: times[order[np.searchsorted(keys[order], owner * 4000 + items)]]
            for name, items in (("ours", got.dataset.items), ("paper", paper.items + 1))
        }
        assert of["ours"].tolist() == of["paper"].tolist()
        inside = owner[1:] == owner[:-1]
        assert (np.diff(of["ours"])[inside] >= 0).all()

    def test_the_low_ratings_of_1m_change_nothing(self, data_dir, tmp_path):
        pq, csv = (pytest.importorskip(f"pyarrow.{name}") for name in ("parquet", "csv"))
        raw = data_dir / "raw" / "ml-1m"
        columns = pq.read_table(raw / "ratings_all.parquet", columns=["user_id", "movie_id", "rating", "timestamp"])
        columns = columns.set_column(3, "timestamp", columns["timestamp"].fill_null(0))
        csv.write_csv(columns, tmp_path / "tabs", csv.WriteOptions(include_header=False, delimiter="\t"))
        (tmp_path / "ratings.dat").write_bytes((tmp_path / "tabs").read_bytes().replace(b"\t", b"::"))
        (tmp_path / "movies.dat").write_bytes((raw / "movies.dat").read_bytes())
        got = prepare(MovieLens(tmp_path), RULES["movielens"])
        assert got.counts["read"] == 1_000_209
        want = prepare(MovieLens(raw), RULES["movielens"])
        assert got.dataset.items.tolist() == want.dataset.items.tolist()
        assert list(got.dataset.user_ids) == list(want.dataset.user_ids)
