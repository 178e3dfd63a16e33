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
from .prepare import Prepared
from .stats import statistics
from .tables import FORMAT, to_tables


def write(
    prepared: Prepared, folder: str | os.PathLike[str], *, name: str, files: list[Path], version: str
) -> dict[str, Any]:
    """Writes the dataset in the prepared format, and the card.

    Everything is written beside its place first, then moved: a failure leaves `folder` as it was.

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
    card = {
        "format": FORMAT,
        "source": name,
        "made_by": f"patchrec_fast {version}",
        "rules": asdict(prepared.rules),
        "interactions": prepared.counts,
        "found": {name: asdict(tally) for name, tally in prepared.tallies.items()},
        "statistics": statistics(prepared.dataset),
        "inputs": dict(zip(_names(files), map(files_of.digest, files), strict=True)),
    }
    files_of.write(folder, to_tables(prepared.dataset), card)
    return card


def _names(files: list[Path]) -> list[str]:
    """Without the folders; of several files with one name the later have a number."""
    names = [file.name for file in files]
    return [f"{name} ({n})" if (n := names[: at + 1].count(name)) > 1 else name for at, name in enumerate(names)]
