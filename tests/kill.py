# SPDX-License-Identifier: Apache-2.0
"""A command killed at its n-th file event below a folder, and how many events there are to kill it at.

A server, one for each command, imports what the command needs and forks for every run: a run costs what it does itself,
not the seconds of its imports. What only a run imports, the server imports after it.
"""

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

SERVER = """
import importlib, json, os, signal, sys, tempfile

# What makes, replaces or removes something on disk: CPython's audit events, the places of the paths among their
# arguments and of the folders (dir_fd) that these are relative to.
KINDS = {
    "open": ((0, None),), "os.chmod": ((0, 2),), "os.link": ((0, 2), (1, 3)), "os.mkdir": ((0, 2),),
    "os.remove": ((0, 1),), "os.rename": ((0, 2), (1, 3)), "os.rmdir": ((0, 1),), "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
}


def below(root, path, folder):
    if not isinstance(path, (str, bytes, os.PathLike)):
        return False
    base = os.readlink(f"/proc/self/fd/{folder}") if isinstance(folder, int) and folder >= 0 else os.getcwd()
    path = os.path.normpath(os.path.join(base, os.fsdecode(path)))
    return path == root or path.startswith(root + os.sep)


def child(wanted, root, arguments, pipe):
    seen = 0

    def count(event, given):
        nonlocal seen
        if event not in KINDS or event == "open" and not given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        if any(below(root, given[path], given[at] if at else None) for path, at in KINDS[event]):
            seen += 1
            if seen == wanted:
                os.write(pipe, json.dumps(list(sys.modules)).encode())
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    try:
        status = main(arguments)
    except SystemExit:
        status = 2
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 3
    sys.stdout.flush(), sys.stderr.flush()
    os.write(pipe, json.dumps(list(sys.modules)).encode())
    os._exit(status)


from patchrec_fast.cli.main import main, parser_of

parser_of(sys.argv[1])  # imports the command
replies = os.fdopen(os.dup(1), "w")
for line in sys.stdin:
    wanted, root, folder, arguments = json.loads(line)
    shown, modules = tempfile.TemporaryFile(), tempfile.TemporaryFile()
    pid = os.fork()
    if not pid:
        os.dup2(shown.fileno(), 1), os.dup2(shown.fileno(), 2)
        os.chdir(folder)
        child(wanted, root, arguments, modules.fileno())
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    shown.seek(0), modules.seek(0)
    for name in json.loads(modules.read() or "[]"):
        if name not in sys.modules:
            try:
                importlib.import_module(name)
            except Exception:  # not all of them can be had by their name
                pass
    print(json.dumps([status, shown.read().decode(errors="replace")]), file=replies, flush=True)
"""


@functools.cache
def _server(command: str) -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, "-P", "-c", SERVER, command],  # -P: not the working directory, which the runs change
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
    )
    atexit.register(server.communicate)  # ends with its input
    return server


def killed(event: int, root: Path, *arguments: object) -> bool:
    """Runs `patchrec-fast ARGUMENTS`, killed before its file event of this number (from 1; 0: never) below `root`.

    Returns:
        False where the command had fewer events, and ended well.
    """
    words = list(map(str, arguments))
    server = _server(words[0])
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps([event, os.path.abspath(root), os.getcwd(), words]) + "\n")
    server.stdin.flush()
    reply = server.stdout.readline()
    assert reply, "the server of killed commands is gone"
    status, shown = json.loads(reply)
    assert status in (0, -signal.SIGKILL), shown
    return status != 0
