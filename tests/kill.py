# SPDX-License-Identifier: Apache-2.0
"""A command killed at its n-th file event below a folder, and how many events there are to kill it at."""

import signal
import subprocess
import sys
from pathlib import Path

# What makes, replaces or removes something on disk, by the names of CPython's audit events.
CHILD = """
import os, signal, sys

wanted, root = int(sys.argv[1]), sys.argv[2]
KINDS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.link", "os.symlink", "os.truncate"}
seen = 0


def count(event, arguments):
    global seen
    if event not in KINDS:
        return
    path = arguments[0]
    if not isinstance(path, (str, bytes, os.PathLike)):
        return
    if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        return
    if not os.path.abspath(os.fsdecode(path)).startswith(root):
        return
    seen += 1
    if seen == wanted:
        os.kill(os.getpid(), signal.SIGKILL)


from patchrec_fast.cli.main import COMMANDS, main, parser_of

parser_of(sys.argv[3])  # imports the command, whose own files are not what is counted
sys.addaudithook(count)
sys.exit(main(sys.argv[3:]))
"""


def killed(event: int, root: Path, *arguments: object) -> bool:
    """Runs `patchrec-fast ARGUMENTS`, killed just before its file event of this number (from 1) below `root`.

    Returns:
        False where the command had fewer events, and ended well.
    """
    command = [sys.executable, "-c", CHILD, str(event), str(root), *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode in (0, -signal.SIGKILL), run.stderr
    return run.returncode != 0
