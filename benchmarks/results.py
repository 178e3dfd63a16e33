# SPDX-License-Identifier: Apache-2.0
"""Long-form results: one CSV row a contestant, appended whole or not at all.

Columns, in this order: where it was measured (`machine.facts`), `data` and what else tells the file's cells apart,
`contestant`, and what was measured:

    median, p20, p80    `_ms` milliseconds, or `_per_s` a second
    rounds, contended   samples, and those that other processes disturbed
    ratio               how many times faster than the cell's best peer, the median of the rounds' ratios; above 1 is
                        faster, the best peer has 1; "nan" where none was measured, or nothing to be compared
    peak_mb             10**6 bytes that the call adds at its highest
    gb_s, ceiling_share bytes moved, and their share of the ceiling's
    reused_share        of a prompt's rows, those that were not read again
    old_share           of a prompt's rows, those that are not the new titles as text, or the suffix behind them
    rows_per_s          the median, beside targets as `_per_s`
    epoch_targets, epoch_rows, epoch_s
                        of an epoch: counted, counted, and extrapolated from the median
    status              "ok", or why nothing was measured (`gpu.py`, whose other columns are named there)
    floor_rows          the fewest rows that the epoch's prompts can be read in (`floor.py`)
"""

import csv
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent / "results"

Row = dict[str, str | int | float]


def append(name: str, rows: Sequence[Row], folder: Path = FOLDER) -> Path:
    """Add rows, all with the same columns, to `<folder>/<name>.csv`.

    Raises:
        ValueError: the file has other columns; nothing is written.
    """
    path = folder / f"{name}.csv"
    columns = list(rows[0])
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if path.exists():
        text.write(old := path.read_text())
        if (header := next(csv.reader(io.StringIO(old)))) != columns:
            raise ValueError(f"{path}: it has the columns {header}, got rows of {columns}")
    else:
        writer.writeheader()
    writer.writerows(rows)
    write(path, text.getvalue())
    return path


def replace(name: str, rows: Sequence[Row], folder: Path = FOLDER) -> Path:
    """Write `<folder>/<name>.csv` anew: of what is the same each time, or drawn as a whole."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(path := folder / f"{name}.csv", text.getvalue())
    return path


def read(name: str, folder: Path = FOLDER) -> list[dict[str, str]]:
    """All rows of `<folder>/<name>.csv`, none where there is no such file."""
    path = folder / f"{name}.csv"
    return list(csv.DictReader(io.StringIO(path.read_text()))) if path.exists() else []


def write(path: Path, content: str | bytes) -> None:
    """Replace a file at once: a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
        os.chmod(temporary, 0o644)  # mkstemp makes private files
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
