# SPDX-License-Identifier: Apache-2.0
"""Names of folders and of the hub's models: told apart, and what is not there is said at once."""

import os
import re
from functools import cache
from pathlib import Path

from ._text import near

_PATIENCE = 10  # seconds that the hub has for a first answer
_HUB = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # owner/name


def on_hub(name: str | os.PathLike[str]) -> bool:
    """Whether a name can only be one of the hub: "owner/name", and there is no folder `owner` here."""
    text = os.fspath(name)
    return _HUB.fullmatch(text) is not None and not Path(text).parent.exists()


def check_folder(name: str | os.PathLike[str], *, hub: bool = False) -> None:
    """Raises FileNotFoundError where there is no such folder, with the nearest there are.

    Args:
        name: of a folder; with `hub` also of a model there, which is not looked for here.
        hub: whether names of the hub are taken.
    """
    if Path(name).is_dir() or (hub and on_hub(name)):
        return
    if Path(name).exists():
        raise NotADirectoryError(f"{name} is a file, expected a folder")
    forms = "; a name of the hub has the form owner/name, without a folder `owner` here" if hub else ""
    raise FileNotFoundError(f"no folder {name}{_nearest(Path(name))}{forms}")


def is_local(name: str | os.PathLike[str], hub: bool, what: str) -> bool:
    """Whether nothing is asked of the hub: a folder, or a name of the hub that was downloaded before and cannot be now.

    Args:
        name, hub: as `check_folder` takes them.
        what: it is, for the message.

    Raises:
        FileNotFoundError, NotADirectoryError: neither here nor, with `hub`, there.
        OSError: the hub does not answer.
    """
    try:
        check_folder(name, hub=hub)
        return Path(name).is_dir() or not _answers(os.fspath(name))
    except OSError as error:
        raise type(error)(f"{what}: {error}") from error


@cache
def _answers(name: str) -> bool:
    """Whether the hub says that it has this; False where it says nothing and what was downloaded before serves.

    transformers alone would try for half a minute before it said that there is no network.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        HfApi().model_info(name, timeout=_PATIENCE)
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(f"no folder {name}, and none of that name on the hub for who asks") from error
    except Exception as error:  # of the network, of whatever library speaks it
        if isinstance(try_to_load_from_cache(name, "tokenizer_config.json"), str):
            return False
        why = str(error).strip().partition("\n")[0]
        raise OSError(f"no folder {name}, and the hub does not answer ({type(error).__name__}: {why})") from error
    return True


def _nearest(path: Path) -> str:
    """The folders that stand where the first missing part of the path is looked for, and are spelt like it."""
    while not path.parent.exists():
        path = path.parent
    try:
        there = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    except OSError:
        return ""
    return near(path.name, there, lambda found: str(path.parent / found))
