# SPDX-License-Identifier: Apache-2.0
"""Results of batches, kept as they come, so that a killed run goes on where it stopped.

A file of JSON lines: the first says what they are results of, each other one is a batch. A line counts once its line
feed is written.
"""

import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from .. import _json
from .._lock import only_one
from ..models.fingerprint import differences

_MARK = {"journal": "patchrec_fast evaluate, 3"}
_BEGINNING = _json.dumps(_MARK).rstrip("}\n").encode()


class Journal:
    """An open journal, which holds its folder; a context manager.

    Attributes:
        path: the file.
        entries: what it held when it was opened, and what was appended since.
    """

    def __init__(self, path: str | os.PathLike[str], header: dict[str, Any], shape: _json.Shape = dict) -> None:
        """Opens a journal of that header, or starts one. A last line without its end, left by a kill, is cut off.

        Args:
            path: in a folder, which is made where it is missing.
            header: of JSON values.
            shape: of an entry, as `_json.check` takes it.

        Raises:
            ValueError: the file is no journal, is damaged, or has another header; it is left as it is. Another run has
                the folder.
            OSError: the file cannot be written.
        """
        self.path = Path(path)
        self._header = {**_MARK, **header}
        with ExitStack() as stack:
            stack.enter_context(only_one(self.path.parent))
            self._file = stack.enter_context(open(self.path, "a+b", buffering=0))
            self.entries = self._read(shape)
            self._stack = stack.pop_all()

    def append(self, entry: dict[str, Any]) -> None:
        """Adds a line, which is on the disk when this returns.

        Raises:
            OSError: it cannot be written; the message names the file, and the lines before it stay.
        """
        self._write(entry)
        self.entries.append(entry)

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, shape: _json.Shape) -> list[dict[str, Any]]:
        self._file.seek(0)
        *lines, torn = self._file.readall().split(b"\n")
        entries = []
        for number, line in enumerate(lines, 1):
            try:
                entries.append(_json.loads(line))
                _json.check(entries[-1], dict if number == 1 else shape)
            except ValueError as error:
                raise ValueError(
                    f"{self.path}: line {number}: not a journal of an evaluation, or damaged ({error}); remove the "
                    "line and those after it to go on before it, or use another folder"
                ) from error
        if not entries:
            self._check_torn(torn)
        elif different := differences(entries[0], self._header):
            raise ValueError(
                f"{self.path}: its results are of another run, which differs in {'; '.join(different)}; use another "
                "folder, or what that run had"
            )
        self._file.truncate(sum(len(line) + 1 for line in lines))
        if not entries:
            self._write(self._header)
        return entries[1:]

    def _check_torn(self, torn: bytes) -> None:
        """A file without one whole line is a journal, of a run that had no results yet, only if it begins like one."""
        if torn[: len(_BEGINNING)] != _BEGINNING[: len(torn)]:
            raise ValueError(f"{self.path}: not a journal of an evaluation; use another folder")

    def _write(self, entry: dict[str, Any]) -> None:
        line = _json.dumps(entry).encode()
        try:
            while line:
                line = line[self._file.write(line) :]
            os.fsync(self._file.fileno())
        except OSError as error:  # a full disk, say, whose error names no file
            raise OSError(error.errno, error.strerror, str(self.path)) from error
