# SPDX-License-Identifier: Apache-2.0
"""The prepared format on disk: `sequences.parquet` and `titles.parquet` in one folder.

sequences.parquet, one row a user: `items` list<int32>, oldest first, and int32 `{split}_first`,
`{split}_last` for the splits train, val and test: inclusive positions of targets, null where there
are none. titles.parquet: `item` int32, `title` string.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .arrow import arrow
from .dataset import Dataset
from .splits import SPLITS

if TYPE_CHECKING:
    from pyarrow import Table

SEQUENCES, TITLES = "sequences.parquet", "titles.parquet"


def load(path: str | os.PathLike[str]) -> Dataset:
    """Read a folder in the prepared format and check it.

    Raises:
        ImportError: pyarrow is not installed.
        FileNotFoundError: no such folder or file.
        ValueError: a file that is not Parquet; a missing column or one of the wrong type; nulls; a
            user without items; an item without a title or with two; split positions outside the
            user's sequence.
    """
    folder = Path(path)
    sequences, titles = _read(folder / SEQUENCES), _read(folder / TITLES)
    where = folder / TITLES
    ids = _integers(_column(titles, "item", where), "item", where)
    texts = _strings(_column(titles, "title", where), where)
    names = dict(zip(ids.tolist(), texts, strict=True))
    if len(names) < len(ids):
        raise ValueError(f"{where}: {len(ids) - len(names)} items are listed more than once")

    where = folder / SEQUENCES
    items, offsets = _lists(_column(sequences, "items", where), where)
    lengths = np.diff(offsets)
    if not lengths.all():
        raise ValueError(f"{where}: the user in row {np.flatnonzero(lengths == 0)[0]} has no items")
    untitled = np.setdiff1d(items, ids)
    if len(untitled):
        raise ValueError(f"{where}: {len(untitled)} items have no title in {TITLES}, the first is {untitled[0]}")
    splits = {name: _positions(sequences, name, lengths, where) for name in SPLITS}
    return Dataset(items, offsets, names, splits)


def save(dataset: Dataset, path: str | os.PathLike[str]) -> None:
    """Write a folder in the prepared format; each file appears whole or not at all.

    Raises:
        ImportError: pyarrow is not installed.
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
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    write_table(pa.table(columns), folder / SEQUENCES)
    write_table(pa.table(titles), folder / TITLES)


def write_table(table: Table, file: Path) -> None:
    """Write one Parquet file, whole or not at all."""
    _, parquet = arrow()
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    os.close(handle)
    try:
        parquet.write_table(table, name, compression="zstd")
        os.chmod(name, 0o644)  # mkstemp makes private files
        os.replace(name, file)
    except BaseException:
        os.unlink(name)
        raise


def _read(file: Path) -> Table:
    pa, parquet = arrow()
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file, expected {SEQUENCES} and {TITLES} in one folder")
    try:
        table = parquet.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}: not a readable Parquet file ({error})") from error
    if not table.num_rows:
        raise ValueError(f"{file}: no rows")
    return table


def _column(table: Table, name: str, file: Path) -> Any:
    if name not in table.column_names:
        raise ValueError(f"{file}: no column {name!r}, it has {table.column_names}")
    column = table.column(name).combine_chunks()
    if column.null_count and not name.endswith(("_first", "_last")):
        raise ValueError(f"{file}: column {name!r} has {column.null_count} nulls, expected none")
    return column


def _integers(column: Any, name: str, file: Path) -> NDArray[np.int32]:
    """The column as int32, -1 for null."""
    pa, _ = arrow()
    if not pa.types.is_integer(column.type):
        raise ValueError(f"{file}: column {name!r} is {column.type}, expected int32")
    try:
        return column.cast(pa.int32()).fill_null(-1).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file}: column {name!r} does not fit int32 ({error})") from error


def _strings(column: Any, file: Path) -> list[str]:
    pa, _ = arrow()
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise ValueError(f"{file}: column 'title' is {column.type}, expected string")
    return column.to_pylist()


def _lists(column: Any, file: Path) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The flat values and the offsets of the lists, from 0."""
    pa, _ = arrow()
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise ValueError(f"{file}: column 'items' is {column.type}, expected list<int32>")
    values = column.flatten()
    if values.null_count:
        raise ValueError(f"{file}: column 'items' holds {values.null_count} nulls, expected none")
    offsets = column.offsets.to_numpy().astype(np.int64)
    return _integers(values, "items", file), offsets - offsets[0]


def _positions(table: Table, split: str, lengths: NDArray[np.int64], file: Path) -> NDArray[np.int32]:
    """(U, 2) int32 first and last position, -1 for null."""
    ends = []
    for end in ("first", "last"):
        name = f"{split}_{end}"
        column = _column(table, name, file)
        if column.null_count == len(column):  # an all-null column may have any type
            ends.append(np.full(len(column), -1, np.int32))
        else:
            ends.append(_integers(column, name, file))
    first, last = ends
    none = (first == -1) & (last == -1)
    bad = np.flatnonzero(~none & ~((first >= 0) & (first <= last) & (last < lengths)))
    if len(bad):
        row = bad[0]
        raise ValueError(
            f"{file}: {split}_first, {split}_last of row {row} are {first[row]}, {last[row]}, "
            f"expected 0 <= first <= last < {lengths[row]} or both null"
        )
    return np.stack([first, last], axis=1)
