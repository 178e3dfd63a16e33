# SPDX-License-Identifier: Apache-2.0
"""The prepared format on disk: `sequences.parquet` and `titles.parquet` in one folder, and the source's own ids.

sequences.parquet, one row a user: `items` list<int32>, oldest first, and int32 `{split}_first`,
`{split}_last` for the splits train, val and test: inclusive positions of targets, null where there
are none. titles.parquet: `item` int32, `title` string.

users.parquet: `user`, the own id of each row of sequences.parquet; without the file those are 0, 1, ...
items.parquet: `item` int32 and `source`, its own id; without the file `item` is the own id. Own ids are whole numbers
or text, all different.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import folder as files_of
from .arrow import arrow
from .dataset import LARGEST, Dataset
from .folder import ITEMS, SEQUENCES, TITLES, USERS
from .ids import Ids, Key
from .splits import SPLITS
from .values import cast, is_number, is_text, lists, plain

if TYPE_CHECKING:
    from pyarrow import Table

FORMAT = 2  # of a set with a card. 1, without this entry: MovieLens' items were numbered movieId - 1


def load(path: str | os.PathLike[str]) -> Dataset:
    """Read a folder in the prepared format and check it.

    MovieLens as versions before `Ids` prepared it has movieId - 1 for numbers of items, and answers in movieIds:
    `item_ids.first` is 1.

    Raises:
        ImportError: pyarrow is not installed.
        FileNotFoundError: no such folder or file.
        ValueError: a set that is half written; a file that is not Parquet; a missing column or one of the wrong type;
            nulls; an item listed twice; own ids that are not all different; whatever `Dataset` refuses.
    """
    folder = Path(path)
    known = files_of.check(folder)
    sequences, titles = _read(folder / SEQUENCES), _read(folder / TITLES)
    where = folder / TITLES
    numbers = _items(titles, where)
    names = dict(zip(numbers, _strings(_column(titles, "title", where), where), strict=True))

    where = folder / SEQUENCES
    items, offsets = _lists(_column(sequences, "items", where), where)
    splits = {name: _positions(sequences, name, where) for name in SPLITS}
    item_ids = _own(folder / ITEMS, "source") if ITEMS in known else Ids(names, first=_first(folder))
    user_ids = _own(folder / USERS, "user") if USERS in known else Ids(range(len(offsets) - 1))
    try:
        return Dataset(items, offsets, names, splits, item_ids, user_ids)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def save(dataset: Dataset, path: str | os.PathLike[str]) -> None:
    """Write a folder in the prepared format; a set that is there is replaced, its card goes, other files stay.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: a dataset without one of the three splits.
        FileExistsError: a file in the folder's place, or one in it that would be replaced and is no part of a data set.
        OSError: a file that cannot be written.
    """
    files_of.write(path, to_tables(dataset))


def to_tables(dataset: Dataset) -> dict[str, Table]:
    """The dataset in the prepared format: file name -> content.

    Raises:
        ValueError: a dataset without one of the three splits.
    """
    if missing := [name for name in SPLITS if name not in dataset.splits]:
        raise ValueError(f"dataset: expected the splits {SPLITS}, {missing} are missing")
    pa, _ = arrow()
    columns: dict[str, Any] = {
        "items": pa.ListArray.from_arrays(pa.array(dataset.offsets, pa.int32()), pa.array(dataset.items, pa.int32()))
    }
    for name in SPLITS:
        for end, values in zip(("first", "last"), dataset.splits[name].T, strict=True):
            columns[f"{name}_{end}"] = pa.array(values, pa.int32(), mask=values < 0)
    titles = {
        "item": pa.array(list(dataset.titles), pa.int32()),
        "title": pa.array(list(dataset.titles.values()), pa.string()),
    }
    tables = {SEQUENCES: pa.table(columns), TITLES: pa.table(titles)}
    if not dataset.user_ids.same:
        tables[USERS] = pa.table({"user": _column_of(dataset.user_ids)})
    if not dataset.item_ids.same:
        tables[ITEMS] = pa.table({"item": titles["item"], "source": _column_of(dataset.item_ids)})
    return tables


def _column_of(ids: Ids) -> Any:
    pa, _ = arrow()
    own = list(ids)
    unsigned = any(isinstance(key, int) and key >= 2**63 for key in own)
    return pa.array(own, pa.uint64() if unsigned else None)


def _first(folder: Path) -> int:
    """What the items' own ids are more than their numbers."""
    card = files_of.read_card(folder) or {"format": FORMAT}
    movielens = str(card.get("source")).startswith(("ml-", "movielens"))
    return 1 if movielens and "format" not in card else 0


def _items(table: Table, file: Path) -> list[int]:
    """The numbers of the items, which are listed once."""
    numbers = _integers(_column(table, "item", file), "item", file).tolist()
    if repeated := len(numbers) - len(set(numbers)):
        raise ValueError(f"{file}: {repeated} items are listed more than once")
    return numbers


def _own(file: Path, name: str) -> Ids:
    pa, _ = arrow()
    table = _read(file)
    column = _plain(_column(table, name, file), name, file)
    if not (pa.types.is_integer(column.type) or is_text(column.type)):
        raise ValueError(f"{file}: column {name!r} is {column.type}, expected integers or text")
    own: list[Key] = column.to_pylist()
    try:
        return Ids(_items(table, file) if name == "source" else range(len(own)), own)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _read(file: Path) -> Table:
    pa, parquet = arrow()
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file, expected {SEQUENCES} and {TITLES} in one folder")
    try:
        with parquet.ParquetFile(file, page_checksum_verification=True) as opened:
            table = opened.read()
        table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError, OverflowError) as error:
        raise ValueError(f"{file}: not a readable Parquet file ({error})") from error
    if not table.num_rows:
        raise ValueError(f"{file}: no rows")
    return table


def _column(table: Table, name: str, file: Path) -> Any:
    if table.column_names.count(name) != 1:
        found = "several columns" if name in table.column_names else "no column"
        raise ValueError(f"{file}: {found} {name!r}, it has {table.column_names}")
    column = table.column(name).combine_chunks()
    if column.null_count and not name.endswith(("_first", "_last")):
        raise ValueError(f"{file}: column {name!r} has {column.null_count} nulls, expected none")
    return column


def _integers(column: Any, name: str, file: Path) -> NDArray[np.int32]:
    """The column, -1 for null."""
    pa, _ = arrow()
    kind, column = column.type, _plain(column, name, file)
    if not is_number(column.type):
        raise ValueError(f"{file}: column {name!r} is {kind}, expected int32")

    def wrong(row: int) -> ValueError:
        return ValueError(
            f"{file}: column {name!r} does not fit int32 ({column[row].as_py()} at {row}, expected whole numbers up to "
            f"{LARGEST})"
        )

    return cast(cast(column, pa.int64(), wrong), pa.int32(), wrong).fill_null(-1).to_numpy(zero_copy_only=False)


def _strings(column: Any, file: Path) -> list[str]:
    kind, column = column.type, _plain(column, "title", file)
    if not is_text(column.type):
        raise ValueError(f"{file}: column 'title' is {kind}, expected string")
    return column.to_pylist()


def _plain(column: Any, name: str, file: Path) -> Any:
    pa, _ = arrow()
    try:
        return plain(column)
    except pa.ArrowException as error:
        raise ValueError(f"{file}: column {name!r}, {column.type}: {error}") from error


def _lists(column: Any, file: Path) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The flat values and the offsets of the lists, from 0."""
    kind, column = column.type, lists(column)
    if column is None:
        raise ValueError(f"{file}: column 'items' is {kind}, expected list<int32>")
    values = column.flatten()
    if values.null_count:
        raise ValueError(f"{file}: column 'items' holds {values.null_count} nulls, expected none")
    offsets = column.offsets.to_numpy().astype(np.int64)
    return _integers(values, "items", file), offsets - offsets[0]


def _positions(table: Table, split: str, file: Path) -> NDArray[np.int32]:
    """(U, 2) first and last position, -1 for null."""
    ends = []
    for end in ("first", "last"):
        name = f"{split}_{end}"
        column = _column(table, name, file)
        if column.null_count == len(column):  # an all-null column may have any type
            ends.append(np.full(len(column), -1, np.int32))
        else:
            ends.append(_integers(column, name, file))
    return np.stack(ends, axis=1)
