# SPDX-License-Identifier: Apache-2.0
"""Raw files of every kind, made up, and a source that needs no file."""

import json
from pathlib import Path

import numpy as np

from patchrec_fast.data.interactions import Chunk, Items

# user, movie, rating, time
RATINGS = [(7, 2, 4, 30), (3, 1, 5, 10), (7, 1, 3, 20), (3, 2, 4, 10), (7, 9, 5, 5)]
MOVIES = {1: "Toy Story (1995)", 2: "Misérables, Les (1995)", 9: "Fish, A (Un poisson) (1988)", 4: "Seen by nobody"}
TITLES = {1: "Toy Story", 2: "Misérables, Les", 9: "A Fish", 4: "Seen by nobody"}
LAYOUTS = ("100k", "dat", "csv")


def movielens(folder: Path, layout: str, ratings=RATINGS, movies=MOVIES, encoding=None, end="\n") -> Path:
    """Writes the pair of files of a layout."""
    folder.mkdir(parents=True, exist_ok=True)
    separator = {"100k": "\t", "dat": "::", "csv": ","}[layout]
    lines = [separator.join(map(str, row)) for row in ratings]
    if layout == "csv":
        lines.insert(0, "userId,movieId,rating,timestamp")
        titles = ["movieId,title,genres", *(f'{movie},"{title}",Drama|War' for movie, title in movies.items())]
    elif layout == "dat":
        titles = [f"{movie}::{title}::Drama|War" for movie, title in movies.items()]
    else:
        titles = [f"{movie}|{title}|01-Jan-1995||http://x" + "|0" * 19 for movie, title in movies.items()]
    names = {"100k": ("u.data", "u.item"), "dat": ("ratings.dat", "movies.dat"), "csv": ("ratings.csv", "movies.csv")}
    encoding = encoding or ("utf-8" if layout == "csv" else "latin-1")
    for name, text in zip(names[layout], (lines, titles), strict=True):
        (folder / name).write_bytes("".join(line + end for line in text).encode(encoding))
    return folder


def interaction(user="u1", book="11", rating=5, date="Fri Aug 25 13:55:02 -0700 2017", **others) -> str:
    return json.dumps({"user_id": user, "book_id": book, "rating": rating, "date_added": date, "n": 1, **others})


def book(number="11", title="A Title (Series, #1)") -> str:
    return json.dumps({"book_id": number, "title": title, "similar_books": ["1", "2"], "isbn": ""})


class Rows:
    """A `Source` over arrays, handed out in chunks."""

    files = (Path("rows"),)

    def __init__(self, users, items, times, ratings=None, titles=None, chunk=7):
        self.rows = [np.asarray(column) for column in (users, items, times)]
        self.ratings = None if ratings is None else np.asarray(ratings, np.float32)
        self.given = {item: f"title {item}" for item in set(items)} if titles is None else titles
        self.chunk = chunk

    def read(self, progress):
        for begin in range(0, len(self.rows[0]), self.chunk):
            users, items, times = (column[begin : begin + self.chunk] for column in self.rows)
            ratings = None if self.ratings is None else self.ratings[begin : begin + self.chunk]
            yield Chunk(users.astype(np.int32), items.astype(np.int32), ratings, times.astype(np.int64))

    def users(self):
        return [f"user {number}" for number in range(self.rows[0].max() + 1)]

    def items(self):
        return Items(np.arange(self.rows[1].max() + 1, dtype=np.int32))

    def titles(self, wanted):
        return self.given
