# SPDX-License-Identifier: Apache-2.0
"""A Parquet file as a table in batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .arrow import arrow
from .faults import check_columns
from .interactions import Progress
from .rawfile import beginning

_ROWS = 1 << 18  # of a batch


class Parquet:
    """One such file.

    Args:
        file: its name.
        wanted: the option that names a column -> the column.
    """

    def __init__(self, file: Path, wanted: dict[str, str]) -> None:
        self._file, self._wanted = file, wanted

    def batches(self, progress: Progress) -> Iterator[tuple[int, Any]]:
        """The number of the first row, from 1, and rows with the wanted columns.

        Raises:
            ValueError: what is wrong with the file.
        """
        pa, parquet = arrow()
        row = 1
        try:
            with parquet.ParquetFile(self._file) as table:
                check_columns(self._file, self._wanted, table.schema_arrow.names)
                share = self._file.stat().st_size / max(1, table.metadata.num_rows)
                for batch in table.iter_batches(_ROWS, columns=list(dict.fromkeys(self._wanted.values()))):
                    yield row, batch
                    row += batch.num_rows
                    progress(round(share * batch.num_rows))
        except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError, MemoryError, OverflowError) as error:
            begins = beginning(self._file)
            if begins == "b''":
                said = "the file is empty"
            elif not begins.startswith("b'PAR1"):
                said = f"not Parquet, it begins with {begins}; the name of a text table ends in .csv, .tsv or .jsonl"
            elif isinstance(error, pa.ArrowNotImplementedError):
                said = f"written as pyarrow {pa.__version__} cannot read it ({str(error).splitlines()[0]})"
            else:
                said = "a Parquet file that is cut short or damaged"
            raise ValueError(f"{self._file}: {said}" + (f", after row {row - 1}" if row > 1 else "")) from error
        if row == 1:
            raise ValueError(f"{self._file}: has no rows")

    def where(self, row: int) -> str:
        return f"row {row}"
