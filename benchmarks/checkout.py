# SPDX-License-Identifier: Apache-2.0
"""The commit that a record names, which is what was measured or it is not recorded."""

import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
_SHOWN = 5


class Uncommitted(RuntimeError):
    """No commit holds what would be measured."""


@cache
def commit(root: Path = ROOT) -> str:
    """Short hash of the checkout, "+" where files differ from it, "none" outside a repository; as first asked for."""
    try:
        return _git(root, "rev-parse", "--short", "HEAD").strip() + ("+" if _changes(root) else "")
    except (OSError, subprocess.CalledProcessError):
        return "none"


def require_committed(root: Path = ROOT) -> None:
    """Before anything is measured that will be recorded.

    The results of an earlier run count as changes too: a run appends to files that its commit holds. Those that this
    run appends come after the question.

    Raises:
        Uncommitted: files differ from the commit, or are new and not ignored, or this is no git repository.
    """
    try:
        changed = _changes(root)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Uncommitted(f"a record names its commit, and {root} is not a git repository ({error})") from error
    if changed:
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise Uncommitted(
            f"a record names its commit, and {root} has uncommitted changes: {', '.join(changed[:_SHOWN])}{more}. "
            "Commit them (the results of an earlier run too), or measure without recording"
        )
    commit(root)


def may_record(program: str) -> bool:
    """Whether `require_committed` passes; what it raises is printed as the program's error."""
    try:
        require_committed()
    except Uncommitted as error:
        print(f"{program}: {error}", file=sys.stderr)
        return False
    return True


def _changes(root: Path) -> list[str]:
    """Paths as `git status` names them: staged, changed, and new ones that git does not ignore."""
    shown = _git(root, "status", "--porcelain", "--untracked-files=all", "-z")
    return [entry.strip() for entry in shown.split("\0") if entry]


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout
