# SPDX-License-Identifier: Apache-2.0
"""MovieLens as GroupLens publishes it, in its three layouts.

    100K                      u.data       tab-separated                 u.item      `|`-separated
    1M, 10M                   ratings.dat  user::item::rating::time      movies.dat  item::title::genres
    20M, 25M, 32M, latest     ratings.csv  with a header                 movies.csv  with a header, quoted

Which of them a folder holds is seen from its files. Item ids are MovieLens' own, the movie
ids; in the paper's prepared data they are these minus 1.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .arrow import arrow
from .blocks import Block, bad_line, blocks, check_end, lines
from .interactions import Chunk, Codes, Items, Key, Progress
from .titles import clean_title

_LARGEST_ID = 10**9 - 1


class _Layout(NamedTuple):
    ratings: str
    movies: str
    delimiter: str  # one character: Arrow takes no more, so `::` is `:` with blank columns between
    blank_columns: bool
    header: bytes
    line: re.Pattern[bytes]
    expected: str
    movie_fields: Callable[[Path, str], Iterator[tuple[int, list[str]]]]


class MovieLens:
    """A folder with one of the official layouts; a `Source`.

    Args:
        folder: where `u.data` and `u.item`, `ratings.dat` and `movies.dat`, or `ratings.csv` and `movies.csv` are.

    Raises:
        FileNotFoundError: neither pair is there.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        self._layout = _find(self._folder)
        self._users, self._movies = Codes(), Codes()

    @property
    def files(self) -> list[Path]:
        return [self._folder / self._layout.ratings, self._folder / self._layout.movies]

    def read(self, progress: Progress) -> Iterator[Chunk]:
        """The ratings.

        Raises:
            ValueError: a line that is not a rating, or a last line without a newline, with its number.
        """
        layout = self._layout
        for block in blocks(self.files[0], progress):
            check_end(block)
            if block.line == 1 and layout.header:
                block = _after_header(block, layout.header)
            if block.text:
                user, movie, rating, time = _parse(block, layout)
                yield Chunk(
                    self._users.encode(user),
                    self._movies.encode(movie),
                    rating.to_numpy(),
                    time.to_numpy(),
                )

    def users(self) -> list[Key]:
        return self._users.names()

    def items(self) -> Items:
        return self._movies.as_items()

    def titles(self, wanted: NDArray[np.int32]) -> dict[int, str]:
        """The titles of all movies of the catalogue, rated or not, cleaned as in the paper.

        Raises:
            ValueError: a line that is not a movie, an id that comes twice, or text that is neither UTF-8 nor, in
                the layouts without a header, Latin-1.
        """
        path = self.files[1]
        titles: dict[int, str] = {}
        for line, fields in self._layout.movie_fields(path, _decode(path, self._layout)):
            if not (fields and re.fullmatch("[1-9][0-9]{0,8}", fields[0])):
                raise ValueError(f"{path}: line {line} begins with {','.join(fields)[:80]!r}, expected a movie id")
            item = int(fields[0])
            if item in titles:
                raise ValueError(f"{path}: line {line}: movie {fields[0]} is listed a second time")
            titles[item] = clean_title(fields[1])
        return titles


def _find(folder: Path) -> _Layout:
    for layout in _LAYOUTS:
        if (folder / layout.ratings).is_file():
            if not (folder / layout.movies).is_file():
                raise FileNotFoundError(f"{folder}: has {layout.ratings} but no {layout.movies}")
            return layout
    expected = ", ".join(f"{layout.ratings} and {layout.movies}" for layout in _LAYOUTS)
    raise FileNotFoundError(f"{folder}: no MovieLens files there, expected one pair of {expected}")


def _after_header(block: Block, header: bytes) -> Block:
    first, _, rest = block.text.partition(b"\n")
    if first.rstrip(b"\r") != header:
        raise ValueError(
            f"{block.path}: line 1 is {first[:80].decode(errors='replace')!r}, expected {header.decode()!r}"
        )
    return Block(block.path, 2, rest)


def _parse(block: Block, layout: _Layout) -> list[Any]:
    """User, movie, rating and time of every line, as Arrow columns."""
    pa, _ = arrow()
    from pyarrow import csv as arrow_csv

    types = {"user": pa.int64(), "movie": pa.int64(), "rating": pa.float32(), "time": pa.int64()}
    names = list(types)
    if layout.blank_columns:
        names = ["user", "", "movie", " ", "rating", "  ", "time"]
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(block.text),
            arrow_csv.ReadOptions(column_names=names, use_threads=False, block_size=len(block.text) + 1),
            arrow_csv.ParseOptions(delimiter=layout.delimiter, quote_char=False, ignore_empty_lines=False),
            arrow_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.null()) | types, null_values=[""]),
        )
        columns = [table.column(name) for name in types]
        good = not any(column.null_count for column in columns)
        good = good and all(_ids(column) for column in columns[:2]) and np.isfinite(columns[2].to_numpy()).all()
    except pa.ArrowInvalid:
        good = False
    if not good:
        wrong = ((number, text) for number, text in lines(block) if not layout.line.fullmatch(text))
        raise bad_line(block.path, *next(wrong, (block.line, block.text)), f"expected {layout.expected}")
    return columns


def _ids(column: Any) -> bool:
    numbers = column.to_numpy()
    return not len(numbers) or bool(numbers.min() >= 1 and numbers.max() <= _LARGEST_ID)


def _decode(path: Path, layout: _Layout) -> str:
    """100K and 1M are Latin-1, 10M is UTF-8 in the layout of 1M; Latin-1 with accents is never valid UTF-8 there."""
    text = path.read_bytes()
    if not text.strip():
        raise ValueError(f"{path}: the file is empty")
    check_end(Block(path, 1, text))
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        if not layout.header:
            return text.decode("latin-1")
        line = text.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}: line {line} is not UTF-8 ({error.reason} at byte {error.start})") from error


def _lines(text: str) -> list[str]:
    # not str.splitlines, which also splits at byte 0x85 of Latin-1
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n")


def _bar_fields(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    for line, row in enumerate(_lines(text), 1):
        fields = row.split("|")
        if len(fields) != 24:
            raise ValueError(f"{path}: line {line} has {len(fields)} fields separated by '|', expected 24")
        yield line, fields


def _colon_fields(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    for line, row in enumerate(_lines(text), 1):
        movie, _, rest = row.partition("::")
        title, found, genres = rest.rpartition("::")
        if not found:
            raise ValueError(f"{path}: line {line} is {row[:80]!r}, expected movie::title::genres")
        yield line, [movie, title, genres]


def _comma_fields(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        if (header := next(rows)) != ["movieId", "title", "genres"]:
            raise ValueError(f"{path}: line 1 is {','.join(header)[:80]!r}, expected 'movieId,title,genres'")
        for fields in rows:
            if len(fields) != 3:
                raise ValueError(
                    f"{path}: line {rows.line_num} has {len(fields)} fields, expected movieId,title,genres"
                )
            yield rows.line_num, fields
    except csv.Error as error:
        raise ValueError(f"{path}: line {rows.line_num}: {error}") from error


def _pattern(delimiter: str) -> re.Pattern[bytes]:
    """A line of ratings: ids from 1 to `_LARGEST_ID`, a decimal rating, an integer time."""
    fields = (r"0*[1-9][0-9]{0,8}", r"0*[1-9][0-9]{0,8}", r"-?[0-9]+(\.[0-9]*)?", r"-?[0-9]{1,18}")
    return re.compile(re.escape(delimiter).join(fields).encode())


_LAYOUTS = (
    _Layout("u.data", "u.item", "\t", False, b"", _pattern("\t"), "user, item, rating, time between tabs", _bar_fields),
    _Layout("ratings.dat", "movies.dat", ":", True, b"", _pattern("::"), "user::item::rating::time", _colon_fields),
    _Layout(
        "ratings.csv",
        "movies.csv",
        ",",
        False,
        b"userId,movieId,rating,timestamp",
        _pattern(","),
        "userId,movieId,rating,timestamp",
        _comma_fields,
    ),
)
