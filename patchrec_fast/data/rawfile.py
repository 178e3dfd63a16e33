# SPDX-License-Identifier: Apache-2.0
"""Raw files as bytes and as text: gzip by the ending, and files of another kind or encoding named for what they are."""

from __future__ import annotations

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .interactions import Progress

_SAMPLE = 1 << 18  # bytes
_SHOWN = 24
_KINDS = (
    (b"\x1f\x8b", "is compressed by gzip; its name should end in .gz"),
    (b"PK\x03\x04", "is a zip archive or a spreadsheet; unpack it, or save the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0", "is a spreadsheet of an old Excel; save it as CSV"),
    (b"PAR1", "is a Parquet file; its name should end in .parquet"),
    (b"SQLite format 3\0", "is an SQLite database; export the table as CSV"),
    (b"BZh", "is compressed by bzip2; unpack it, or use gzip"),
    (b"\xfd7zXZ\0", "is compressed by xz; unpack it, or use gzip"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd; unpack it, or use gzip"),
)
_MARKS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_NO_TEXT = re.compile("[\udc80-\udcff]+")  # what `surrogateescape` makes of bytes that are no text


class Bytes(io.RawIOBase):
    """The content of a file, plain or `.gz`.

    Args:
        file: its name.
        progress: told how many bytes of the file have been read since the last call.

    Attributes:
        lines: line ends (`\\n`) that have been read.
        ended: whether the last byte that has been read is one.
    """

    def __init__(self, file: Path, progress: Progress = lambda size: None) -> None:
        self._path, self._progress, self._told = file, progress, 0
        self._raw = file.open("rb")
        self._file: IO[bytes] | gzip.GzipFile = self._raw
        if file.name.lower().endswith(".gz"):
            self._file = gzip.GzipFile(fileobj=self._raw)
        self.lines, self.ended = 0, True

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """Raises ValueError for a compressed file that is cut short, damaged or none."""
        try:
            found = self._file.read(size)
        except gzip.BadGzipFile as error:
            if self._raw.tell() <= 1 << 20 and not self.lines:
                raise ValueError(
                    f"{self._path}: not compressed by gzip, it begins with {beginning(self._path)}; "
                    "the name of a file of plain text should not end in .gz"
                ) from error
            raise ValueError(f"{self._path}: the compressed file is damaged, its checksum is another") from error
        except EOFError as error:
            raise ValueError(f"{self._path}: the compressed file is cut short, copy it again") from error
        except zlib.error as error:
            raise ValueError(f"{self._path}: the compressed file is damaged, it cannot be unpacked") from error
        if found:
            self.lines += found.count(b"\n")
            self.ended = found.endswith(b"\n")
        self._progress(self._raw.tell() - self._told)
        self._told = self._raw.tell()
        return found

    def readinto(self, buffer: Any) -> int:
        found = self.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        self._file.close()
        self._raw.close()
        super().close()


def beginning(file: Path) -> str:
    """The first bytes of a file, to be shown."""
    with file.open("rb") as raw:
        return repr(raw.read(_SHOWN))


def check_encoding(encoding: str | None) -> str | None:
    """The encoding where it is another than UTF-8, None otherwise.

    Raises:
        ValueError: no encoding of text.
    """
    if encoding is None:
        return None
    try:
        io.TextIOWrapper(io.BytesIO(), encoding)
        name = codecs.lookup(encoding).name
    except (LookupError, ValueError, TypeError):
        raise ValueError(
            f"--encoding: expected the name of an encoding, as utf-8, latin-1, cp1252 or utf-16, got {encoding!r}"
        ) from None
    return None if name in ("utf-8", "utf-8-sig") else name


def sample(file: Path, encoding: str | None) -> str:
    """The beginning of a text, its last line whole; what cannot be decoded is replaced.

    Raises:
        ValueError: an empty file, another kind of file, or another encoding than it is said to have.
    """
    with Bytes(file) as opened:
        start = io.BufferedReader(opened, _SAMPLE).read(_SAMPLE)
    if not start.strip():
        raise ValueError(f"{file}: the file is empty")
    for mark, kind in _KINDS:
        if start.startswith(mark):
            raise ValueError(f"{file}: {kind}")
    if encoding is None:
        for mark, name in _MARKS:
            if start.startswith(mark):
                raise ValueError(f"{file}: row 1 begins with the mark of {name.upper()}; --encoding {name} reads it")
    begins = f"row 1 begins with {start[:_SHOWN]!r}"
    try:
        text = codecs.getincrementaldecoder(encoding or "utf-8")("replace").decode(start).removeprefix("\ufeff")
    except UnicodeError as error:
        raise ValueError(f"{file}: {begins}, which is not text of --encoding {encoding}") from error
    if text.count("\0", 0, 4096) > 2:
        half = max(start[:40:2].count(0), start[1:40:2].count(0))  # of the characters of UTF-16
        name = "utf-16-be" if start[:1] == b"\0" else "utf-16-le"
        helps = f"; --encoding {name} reads UTF-16 without its mark" if half > 10 and encoding is None else ""
        raise ValueError(f"{file}: {begins} and there are NUL characters, expected text{helps}")
    if len(start) == _SAMPLE:
        text = text[: max(text.rfind("\n"), text.rfind("\r")) + 1] or text
    return text


@contextmanager
def opened(file: Path, encoding: str | None, progress: Progress = lambda size: None) -> Iterator[io.TextIOWrapper]:
    """The file as text, without a mark at its beginning; bytes that are no text are lone surrogates (`no_text`)."""
    raw = io.BufferedReader(Bytes(file, progress), 1 << 20)
    with io.TextIOWrapper(raw, encoding or "utf-8-sig", "surrogateescape", newline="") as text:
        yield text


def no_text(file: Path, row: str, column: str, text: str, encoding: str | None) -> ValueError | None:
    """The error for text with bytes that are not of the encoding; None where there are none."""
    if (found := _NO_TEXT.search(text)) is None:
        return None
    raw = found[0].encode("utf-8", "surrogateescape")
    around = text[max(0, found.start() - 12) : found.end() + 12].encode(encoding or "utf-8", "surrogateescape")
    if encoding is not None:
        helps = f"--encoding {encoding} is not what the file is written in"
    else:
        # the bytes that Windows has its quotes and dashes in are no characters in Latin-1
        name = "cp1252" if any(0x80 <= byte < 0xA0 for byte in raw) else "latin-1"
        helps = f"--encoding {name} reads {around.decode(name, 'replace')!r} there"
    what = f"found the bytes {raw.hex(' ')} in {around!r}"
    return ValueError(f"{file}: {row}, column {column!r}: {what}, expected {encoding or 'UTF-8'}; {helps}")
