# SPDX-License-Identifier: Apache-2.0
"""The files of a data set in one folder, which belong together or are refused.

Every file of a set carries the same mark, a digest of the whole set: the Parquet files among their metadata, the card
as "set". The files are written beside their places first and then take them one after another. Where that was broken
off, the marks differ, and the next run that writes a set there ends it. Sets of older versions carry no mark; files of
the same names that are no part of a set are never replaced.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import _files
from .arrow import arrow
from .splits import SPLITS

if TYPE_CHECKING:
    from pyarrow import Table

SEQUENCES, TITLES, USERS, ITEMS, CARD = (
    "sequences.parquet",
    "titles.parquet",
    "users.parquet",
    "items.parquet",
    "card.json",
)
_COLUMNS = {
    SEQUENCES: {"items", *(f"{name}_{end}" for name in SPLITS for end in ("first", "last"))},
    TITLES: {"item", "title"},
    USERS: {"user"},
    ITEMS: {"item", "source"},
}
_MARK = b"patchrec_fast.set"
_MAKER = "patchrec_fast "  # a card's "made_by" begins with it


def check_target(folder: str | os.PathLike[str]) -> Path:
    """Whether a data set may be written there; before a long computation.

    Returns:
        The folder itself, without links and `..`.

    Raises:
        ValueError: no path.
        FileExistsError: a file in the folder's place, or one in it with a name of a set's that is no part of a set.
    """
    if not os.fspath(folder):
        raise ValueError("folder: expected a path, got ''")
    target = Path(os.path.realpath(folder))
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"{target}: there already, and not a folder")
    known = marks(target)
    for name in (*_COLUMNS, CARD):
        if (target / name).exists() and name not in known:
            raise FileExistsError(
                f"{target / name}: there already, and not written by patchrec_fast; choose another folder or move it"
            )
    return target


def write(folder: str | os.PathLike[str], tables: dict[str, Table], card: dict[str, Any] | None = None) -> None:
    """Writes a set in the place of one that may be there; other files in the folder stay.

    Args:
        folder: made where it is missing.
        tables: file name -> content.
        card: gets "set" and "outputs", the digests of the tables' files.

    Raises:
        FileExistsError: as `check_target`.
        OSError: names the file that cannot be written; what was there is there still.
    """
    target = check_target(folder)
    new = not target.exists()
    try:
        _replace(target, tables, card)
    except BaseException:
        if new:
            with suppress(OSError):
                target.rmdir()
        raise
    kept = {*tables, *([CARD] if card is not None else [])}
    for name in (USERS, ITEMS, CARD):  # of the set that was there; its card last, which tells whose the others are
        if name not in kept and name in marks(target):
            (target / name).unlink()


def _replace(target: Path, tables: dict[str, Table], card: dict[str, Any] | None) -> None:
    mark = _digest(tables, card)
    with ExitStack() as stack:  # which leaves in the opposite order: the card comes last
        if card is not None:
            card_file = stack.enter_context(_files.replacing(target / CARD))
        places = {}
        for name, table in tables.items():
            places[name] = stack.enter_context(_files.replacing(target / name))
            _write_table(table.replace_schema_metadata({_MARK: mark}), places[name])
        if card is not None:
            card |= {"set": mark, "outputs": {name: digest(places[name]) for name in sorted(tables)}}
            with _files.naming(target / CARD, card_file):
                card_file.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check(folder: Path) -> set[str]:
    """The files of the set in the folder. Raises ValueError where they are not of one set.

    Beside files without a mark, one of own ids belongs to them that has no other columns.
    """
    found = marks(folder)
    if len(set(found.values())) > 1 or (any(found.values()) and not {SEQUENCES, TITLES} <= found.keys()):
        sets: dict[str, list[str]] = {}
        for name, mark in found.items():
            sets.setdefault(mark, []).append(name)
        shown = "; ".join(
            f"{', '.join(names)} {f'of set {mark[:8]}' if mark else 'without a mark'}" for mark, names in sets.items()
        )
        raise ValueError(
            f"{folder}: a data set that is half written, or files of several ({shown}). Write it again with the same "
            "command, or with patchrec_fast.data.save, which marks what it writes"
        )
    outputs = (read_card(folder) or {}).get("outputs")
    if lost := sorted(set(outputs if isinstance(outputs, dict) else ()) - found.keys()):
        raise ValueError(f"{folder}: {', '.join(lost)} of the set is not there, or no file of a set's")
    if any(found.values()):
        return set(found)
    return {*found, *(name for name in (USERS, ITEMS) if _schema(folder / name)[0] == _COLUMNS[name])}


def marks(folder: Path) -> dict[str, str]:
    """The mark of each file of a set in the folder, "" of one without; files that are no part of a set are left out."""
    found = {}
    card = read_card(folder)
    for name, columns in _COLUMNS.items():
        names, metadata = _schema(folder / name)
        if _MARK in metadata:
            found[name] = metadata[_MARK].decode(errors="replace")
        elif columns <= names and (name == SEQUENCES or (SEQUENCES in found if name == TITLES else card is not None)):
            found[name] = ""
    return found if card is None else found | {CARD: str(card.get("set", ""))}


def digest(file: Path) -> dict[str, Any]:
    """Bytes and SHA-256 of a file."""
    with file.open("rb") as opened:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}


class _Hash(io.RawIOBase):
    """A file that is only digested."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, piece: Any) -> int:
        self.sha256.update(piece)
        return len(piece)


def _digest(tables: dict[str, Table], card: dict[str, Any] | None) -> str:
    pa, _ = arrow()
    sink = _Hash()
    sink.write(json.dumps([list(tables), card]).encode())
    for table in tables.values():
        with pa.ipc.new_stream(pa.PythonFile(sink, "w"), table.schema) as stream:
            stream.write_table(table)
    return sink.sha256.hexdigest()


def _write_table(table: Table, file: Path) -> None:
    _, parquet = arrow()
    parquet.write_table(table, file, compression="zstd", write_page_checksum=True)


def _schema(file: Path) -> tuple[set[str], dict[bytes, bytes]]:
    """Column names and metadata of a Parquet file, nothing of any other."""
    pa, parquet = arrow()
    try:
        schema = parquet.read_schema(file)
        return set(schema.names), schema.metadata or {}
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        return set(), {}


def read_card(folder: Path) -> dict[str, Any] | None:
    """A card that this package wrote."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    ours = isinstance(card, dict) and str(card.get("made_by")).startswith(_MAKER)
    return card if ours else None
