# SPDX-License-Identifier: Apache-2.0
"""Unpacking a zip archive without trusting it."""

import errno
import lzma
import os
import shutil
import stat
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from .interactions import Progress

LARGEST = 8 << 30  # bytes unpacked; MovieLens-32M is under 1 GiB
MOST_FILES = 1000
_PIECE = 1 << 20
# what zipfile and its decompressors raise; RuntimeError: encrypted, or of an unknown kind
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    RuntimeError,
    OverflowError,
    LookupError,
    ValueError,
)


def unpack(
    archive: Path, name: str, out: Path, progress: Progress = lambda size: None, *, largest: int = LARGEST
) -> Path:
    """Unpacks the folder `name` of a zip archive as `out/name`, which appears whole or not at all.

    Args:
        archive: the file.
        name: a top folder of the archive; other members are left out.
        out: an existing folder without `name`.
        progress: told the bytes as they are written.
        largest: the most bytes that may come out.

    Raises:
        ValueError: not a readable zip archive, or an encrypted one; a member whose path is absolute or leads out of
            the folder, a link or a device, a member that comes twice; more files or bytes than the limits; no folder
            `name`.
        FileExistsError: `out/name` is there already.
    """
    target = out / name
    if target.exists():
        raise FileExistsError(f"{target}: there already")
    temporary = out / f".{name}.part"
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    try:
        temporary.mkdir()
        with zipfile.ZipFile(archive) as opened:
            members = _checked(opened, archive, largest)
            wanted = [member for member in members if PurePosixPath(member.filename).parts[0] == name]
            if not wanted:
                raise ValueError(f"{archive}: no folder {name!r} in the archive")
            for member in wanted:
                _extract(opened, member, temporary, progress)
        os.rename(temporary / name, target)
    except _DAMAGED as error:
        if str(error).startswith(f"{archive}: "):  # said here
            raise
        raise ValueError(f"{archive}: not a readable zip archive ({error})") from error
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # bz2 about damaged data, and a seek to a damaged place
            raise ValueError(f"{archive}: not a readable zip archive ({error})") from error
        if error.filename is None:
            raise OSError(error.errno, f"{error.strerror}, unpacking {archive}", str(target)) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _checked(opened: zipfile.ZipFile, archive: Path, largest: int) -> list[zipfile.ZipInfo]:
    """The files of the archive; every member is checked before the first byte is written."""
    members = opened.infolist()
    if len(members) > MOST_FILES:
        raise ValueError(f"{archive}: {len(members)} members, expected at most {MOST_FILES}")
    size = sum(member.file_size for member in members)  # zipfile stops a member at the size that it declares
    if size > largest:
        raise ValueError(f"{archive}: would unpack to {size:,} bytes, expected at most {largest:,}")
    seen = set()
    for member in members:
        path = PurePosixPath(member.filename)
        if path.is_absolute() or ".." in path.parts or not path.parts or set("\\:\0") & set(member.filename):
            raise ValueError(f"{archive}: member {member.filename!r} leads out of the folder")
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(f"{archive}: member {member.filename!r} is a link or a device")
        if path in seen:
            raise ValueError(f"{archive}: member {member.filename!r} comes twice")
        seen.add(path)
    return [member for member in members if not member.is_dir()]


def _extract(opened: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path, progress: Progress) -> None:
    path = folder / member.filename
    path.parent.mkdir(parents=True, exist_ok=True)
    with opened.open(member) as packed, path.open("xb") as file:
        while piece := packed.read(_PIECE):
            file.write(piece)
            progress(len(piece))
