# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all."""

import errno
import fcntl
import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path in the same folder; what was written there takes the place of `path` at the end.

    The folder is made where it is missing. Where the block raises, `path` stays as it was. A new file gets the mode
    that the process's umask gives, one that was there keeps its own; a link stays a link, and the file that it names is
    replaced. What a killed process left behind is removed by the next one that writes the same file.

    Raises:
        OSError: names `path`: it cannot be written, is no regular file, or the disk is full.
    """
    target = Path(os.path.realpath(path))
    with naming(path, target.parent):
        mode = _mode(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        handle, temporary = _create(target)
    try:
        with naming(path, temporary):
            yield temporary
            if mode is not None:
                os.chmod(temporary, mode)
            os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


@contextmanager
def naming(path: str | os.PathLike[str], unknown: Path) -> Iterator[None]:
    """Errors of the system that name no file, or one that the user does not know, name `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is not None and not Path(str(error.filename)).is_relative_to(unknown):
            raise  # of another file, which the block reads
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), os.fspath(path)) from error


def write(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Replaces a file by this content; text as UTF-8."""
    data = content if isinstance(content, bytes) else content.encode()
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def _mode(target: Path) -> int | None:
    """The mode to keep, None for a new file."""
    if not target.exists():
        return None
    if not target.is_file():  # os.replace would put a file in the place of a device
        raise OSError(errno.EEXIST, "there already, and not a file")
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return target.stat().st_mode & 0o777


def _beginning(target: Path) -> str:
    return f".{target.name[:40]}.part-"


def _create(target: Path) -> tuple[int, Path]:
    """A new file, locked as long as its handle is open."""
    while True:
        path = target.with_name(f"{_beginning(target)}{secrets.token_hex(8)}{target.suffix}")
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if path.exists():  # another process may have swept it before the lock
            return handle, path
        os.close(handle)


def _sweep(target: Path) -> None:
    """Removes the temporary files of processes that are gone: their locks went with them."""
    for left in target.parent.glob(f"{glob.escape(_beginning(target))}*"):
        with suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()
