# SPDX-License-Identifier: Apache-2.0
"""One run at a time in a folder."""

import errno
import fcntl
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_held: set[int] = set()
_WITHOUT = {errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # file systems without locks


@contextmanager
def only_one(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Holds the folder, which is made where it is missing; one that was made and stayed empty goes again.

    The lock is the system's, on the folder itself: nothing is written for it, and it is gone with its process, however
    that ends. Processes that a holder forks, such as a data loader's workers, do not hold it.

    Raises:
        OSError: the folder cannot be made or read.
        ValueError: another run holds it.
    """
    path = Path(folder)
    new = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    _held.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"out: another run is writing in {path} now; wait for it or give another folder"
            ) from error
        except OSError as error:
            if error.errno not in _WITHOUT:
                raise
            warnings.warn(f"{path}: its file system has no locks; nothing keeps a second run out", stacklevel=3)
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)
        if new:
            with suppress(OSError):  # not empty
                path.rmdir()


def _let_go() -> None:
    """In a forked process: its copies of the descriptors would keep the locks of a parent that was killed."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
