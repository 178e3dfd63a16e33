# SPDX-License-Identifier: Apache-2.0
"""The prepared format on disk: `sequences.parquet` and `titles.parquet` in one folder.

sequences.parquet, one row a user: `items` list<int32>, oldest first, and int32 `{split}_first`,
`{split}_last` for the splits train, val and test: inclusive positions of targets, null where there
are none. titles.parquet: `item` int32, `title` string.
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
from .folder import SEQUENCES, TITLES
from .splits import SPLITS
from .values import cast, is_number, is_text, lists, plain

if TYPE_CHECKING:
    from pyarrow import Table


def load(path: str | os.PathLike[str]) -> Dataset:
    """Read a folder in the prepared format and check it.

    Raises:
        ImportError: pyarrow is not installed.
        FileNotFoundError: no such folder or file.
        ValueError: a set that is half written; a file that is not Parquet; a missing column or one of the wrong type;
            nulls; an item listed twice; whatever `Dataset` refuses.
    """
    folder = Path(path)
    files_of.check(folder)
    sequences, titles = _read(folder / SEQUENCES), _read(folder / TITLES)
    where = folder / TITLES
    ids = _integers(_column(titles, "item", where), "item", where)
    texts = _strings(_column(titles, "title", where), where)
    names = dict(zip(ids.tolist(), texts, strict=True))
    if len(names) < len(ids):
        raise ValueError(f"{where}: {len(ids) - len(names)} items are listed more than once")

    where = folder / SEQUENCES
    items, offsets = _lists(_column(sequences, "items", where), where)
    splits = {name: _positions(sequences, name, where) for name in SPLITS}
    try:
        return Dataset(items, offsets, names, splits)
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
    return {SEQUENCES: pa.table(columns), TITLES: pa.table(titles)}


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
