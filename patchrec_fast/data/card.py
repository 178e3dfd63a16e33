# SPDX-License-Identifier: Apache-2.0
"""A prepared dataset on disk with `card.json`: where it came from and how, so that it can be checked and made again.

The card holds no date and no path: the same input gives the same bytes.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import folder as files_of
from .arrow import arrow
from .folder import ITEMS, USERS
from .interactions import Key
from .prepare import Prepared
from .stats import statistics
from .tables import to_tables


def write(
    prepared: Prepared, folder: str | os.PathLike[str], *, name: str, files: list[Path], version: str
) -> dict[str, Any]:
    """Writes the dataset in the prepared format, the source's own names of users and items, and the card.

    Everything is written beside its place first, then moved: a failure leaves `folder` as it was. `users.parquet` has
    the column `user`, in the order of the dataset. `items.parquet` (`item`, `source`) is there only where item ids are
    not the source's own.

    Args:
        prepared: what `prepare` gave.
        folder: made if it is missing; a data set in it is replaced, other files stay.
        name: of the source, for the card.
        files: the source's files, for their sizes and SHA-256.
        version: of the program, for the card.

    Returns:
        The card.

    Raises:
        FileExistsError: a file in the folder's place, or one in it that would be replaced and is no part of a data set.
        OSError: a file that cannot be written.
    """
    pa, _ = arrow()
    tables = to_tables(prepared.dataset)
    tables[USERS] = pa.table({"user": _names(prepared.users)})
    if prepared.item_names:
        own = _names(list(prepared.item_names.values()))
        tables[ITEMS] = pa.table({"item": list(prepared.item_names), "source": own})
    card = {
        "source": name,
        "made_by": f"patchrec_fast {version}",
        "rules": asdict(prepared.rules),
        "interactions": prepared.counts,
        "found": {name: asdict(tally) for name, tally in prepared.tallies.items()},
        "statistics": statistics(prepared.dataset),
        "inputs": {file.name: files_of.digest(file) for file in files},
    }
    files_of.write(folder, tables, card)
    return card


def _names(own: list[Key]) -> Any:
    """An Arrow array; as text what no column of Arrow's can hold together."""
    pa, _ = arrow()
    try:
        return pa.array(own)
    except (pa.ArrowException, OverflowError):
        return pa.array(list(map(str, own)))
