# SPDX-License-Identifier: Apache-2.0
"""MovieLens from GroupLens: resumed where it broke off, checked with the published MD5, unpacked.

A file under its final name is whole and checked. Until then it is `NAME.zip.part`, from which the next attempt, or
the next call, goes on. The data are under GroupLens's research licence: no redistribution, no commercial use.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Protocol

from .._options import MOVIELENS
from .archive import unpack

URL = "https://files.grouplens.org/datasets/movielens"
_PIECE = 1 << 18
_TIMEOUT = 60  # seconds without a byte
_BROKEN = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


class Bar(Protocol):
    """The part of tqdm's bar that is used."""

    def update(self, n: float = 1) -> object: ...

    def reset(self, total: float | None = None) -> object: ...


def download(
    name: str,
    out: str | os.PathLike[str],
    *,
    url: str = URL,
    bar: Bar | None = None,
    attempts: int = 5,
    wait: float = 1,
) -> Path:
    """Downloads, checks and unpacks a MovieLens set.

    Args:
        name: "ml-1m", or another of `_options.MOVIELENS`.
        out: the folder that gets `NAME.zip` and the folder `NAME`; made if it is missing.
        url: where `NAME.zip` and `NAME.zip.md5` are.
        bar: shows the bytes of the connection.
        attempts: how often a connection may break before it is an error.
        wait: seconds before the second attempt, twice as many before each further one.

    Returns:
        `out/NAME`; if it is there already, nothing is done.

    Raises:
        ValueError: an unknown name; a file that does not have the published checksum, which is removed; an archive
            that is not safe to unpack.
        FileExistsError: a file in the place of `out` or `out/NAME`.
        OSError: the server refuses, or the connection keeps breaking; what has come is kept for the next call.
    """
    if name not in MOVIELENS:
        raise ValueError(f"name: expected one of {MOVIELENS}, got {name!r}")
    if attempts < 1:
        raise ValueError(f"attempts: expected at least 1, got {attempts}")
    if not os.fspath(out):
        raise ValueError("out: expected a path, got ''")
    out = Path(os.path.realpath(out))
    for path in (out, out / name):
        if path.exists() and not path.is_dir():
            raise FileExistsError(f"{path}: there already, and not a folder")
    out.mkdir(parents=True, exist_ok=True)
    if (out / name).is_dir():
        return out / name
    archive = out / f"{name}.zip"
    expected = _published(f"{url}/{name}.zip.md5")
    if not (archive.is_file() and _md5(archive) == expected):
        part = archive.with_name(archive.name + ".part")
        _fetch(f"{url}/{name}.zip", part, bar, attempts, wait)
        if (found := _md5(part)) != expected:
            part.unlink()
            raise ValueError(f"{url}/{name}.zip: MD5 is {found}, published is {expected}; the file was removed")
        os.replace(part, archive)
    return unpack(archive, name, out)


def _published(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as reply:
            text = reply.read(4096).decode("ascii", errors="replace")
    except _BROKEN as error:
        raise OSError(f"{url}: {error}") from error
    found = re.search(r"\b[0-9a-f]{32}\b", text.lower())
    if not found:
        raise ValueError(f"{url}: expected an MD5, got {text[:80]!r}")
    return found[0]


def _fetch(url: str, part: Path, bar: Bar | None, attempts: int, wait: float) -> None:
    for attempt in range(1, attempts + 1):
        try:
            _go_on(url, part, bar)
            return
        except _BROKEN as error:
            if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                raise OSError(f"{url}: {error}") from error
            if attempt == attempts:
                size = part.stat().st_size if part.exists() else 0
                kept = f"; {size:,} bytes are kept in {part}, the same command goes on from there" if size else ""
                raise OSError(f"{url}: the connection broke {attempts} times ({error}){kept}") from error
            time.sleep(wait * 2 ** (attempt - 1))


def _go_on(url: str, part: Path, bar: Bar | None) -> None:
    """One connection: asks for what is missing, and takes a server that sends everything anew."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        reply = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # all is there already, or too much: the checksum will tell
            return
        raise
    with reply:
        start = have if reply.status == 206 else 0
        sent = reply.headers["Content-Range"] or ""
        if start and not sent.startswith(f"bytes {start}-"):
            raise http.client.HTTPException(f"asked for the bytes from {start}, got {sent!r}")
        length = reply.headers["Content-Length"]
        total = start + int(length) if length else None
        if bar is not None:
            bar.reset(total - start if total else None)  # what is left, or the rate would count what was there
        with part.open("ab" if start else "wb", buffering=0) as file:
            while piece := reply.read(_PIECE):
                _append(file, piece, part)
                if bar is not None:
                    bar.update(len(piece))
    if total is not None and part.stat().st_size < total:
        raise ConnectionError(f"{part.stat().st_size:,} of {total:,} bytes came")


def _append(file: io.FileIO, piece: bytes, part: Path) -> None:
    left = memoryview(piece)
    try:
        while left:  # a file without a buffer may take a part
            left = left[file.write(left) :]
    except OSError as error:  # a full disk
        raise OSError(
            error.errno, f"{error.strerror}; what fits is kept, the same command goes on", str(part)
        ) from error


def _md5(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
