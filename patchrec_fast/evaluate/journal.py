# SPDX-License-Identifier: Apache-2.0
"""Results of batches, kept as they come, so that a killed run goes on where it stopped.

A file of JSON lines: the first says what they are results of, each other one is a batch. A line counts once its line
feed is written.
"""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any


class Journal:
    """An open journal; a context manager.

    Attributes:
        path: the file.
        entries: what it held when it was opened, and what was appended since.
    """

    def __init__(self, path: str | os.PathLike[str], header: dict[str, Any]) -> None:
        """Opens a journal of that header, or starts one. A last line without its end, left by a kill, is cut off.

        Args:
            path: in a folder, which is made where it is missing.
            header: of JSON values.

        Raises:
            ValueError: the file is no journal, or has another header; it is left as it is.
        """
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+b")  # noqa: SIM115 closed by close
        try:
            self.entries = self._read(header)
        except BaseException:
            self._file.close()
            raise

    def append(self, entry: dict[str, Any]) -> None:
        """Adds a line, which is on the disk when this returns."""
        self._write(entry)
        self.entries.append(entry)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, header: dict[str, Any]) -> list[dict[str, Any]]:
        self._file.seek(0)
        *lines, torn = self._file.read().split(b"\n")
        try:
            entries = [json.loads(line) for line in lines]
        except ValueError as error:
            raise ValueError(f"{self.path}: not a journal of an evaluation ({error})") from error
        if not entries:
            _check_torn(self.path, torn, header)
        elif entries[0] != header:
            difference = _difference(entries[0], header)
            raise ValueError(f"{self.path}: it is of another run, {difference}; use another folder")
        self._file.truncate(sum(len(line) + 1 for line in lines))
        if not entries:
            self._write(header)
        return entries[1:]

    def _write(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _check_torn(path: Path, torn: bytes, header: dict[str, Any]) -> None:
    """A file without one whole line is a journal only if it is the beginning of this header."""
    if not (json.dumps(header).encode() + b"\n").startswith(torn):
        raise ValueError(f"{path}: not a journal of this evaluation; use another folder")


def _difference(old: Any, new: dict[str, Any]) -> str:
    if not isinstance(old, dict):
        return f"which begins with {old!r}"
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name} {_short(old.get(name))} and not {_short(new.get(name))}" for name in names)


def _short(value: Any) -> str:
    """A value in a message; of a fingerprint the beginning is enough."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:9]}...{text[-1]}"
