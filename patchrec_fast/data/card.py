# SPDX-License-Identifier: Apache-2.0
"""A prepared dataset on disk with `card.json`: where it came from and how, so that it can be checked and made again.

The card holds no date and no path: the same input gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .arrow import arrow
from .prepare import Prepared
from .stats import statistics
from .tables import save, write_table

CARD, USERS, ITEMS = "card.json", "users.parquet", "items.parquet"


def write(
    prepared: Prepared, folder: str | os.PathLike[str], *, name: str, files: list[Path], version: str
) -> dict[str, Any]:
    """Writes the dataset in the prepared format, the source's own names of users and items, and the card.

    Everything is written to a new folder beside `folder` first, then moved: a failure leaves `folder` as it was.
    `users.parquet` has the column `user`, in the order of the dataset. `items.parquet` (`item`, `source`) is there
    only where item ids are not the source's own.

    Args:
        prepared: what `prepare` gave.
        folder: made if it is missing; files of these names in it are replaced.
        name: of the source, for the card.
        files: the source's files, for their sizes and SHA-256.
        version: of the program, for the card.

    Returns:
        The card.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        made = temporary / folder.name  # with the usual permissions, which mkdtemp's own folder lacks
        save(prepared.dataset, made)
        _write_names(prepared, made)
        card = {
            "source": name,
            "made_by": f"patchrec_fast {version}",
            "rules": asdict(prepared.rules),
            "interactions": prepared.counts,
            "statistics": statistics(prepared.dataset),
            "inputs": _digests(files),
            "outputs": _digests(sorted(made.iterdir())),
        }
        (made / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        _move(made, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return card


def _write_names(prepared: Prepared, folder: Path) -> None:
    pa, _ = arrow()
    write_table(pa.table({"user": pa.array(prepared.users)}), folder / USERS)
    if prepared.item_names:
        names = {"item": list(prepared.item_names), "source": list(prepared.item_names.values())}
        write_table(pa.table(names), folder / ITEMS)


def _move(made: Path, folder: Path) -> None:
    if not folder.exists():
        os.rename(made, folder)
        return
    (folder / CARD).unlink(missing_ok=True)  # a card is there only while it is true of all the files
    (folder / ITEMS).unlink(missing_ok=True)
    for file in sorted(made.iterdir(), key=lambda file: file.name == CARD):
        os.replace(file, folder / file.name)


def _digests(files: list[Path]) -> dict[str, Any]:
    digests = {}
    for file in files:
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        digests[file.name] = {"bytes": file.stat().st_size, "sha256": digest}
    return digests
