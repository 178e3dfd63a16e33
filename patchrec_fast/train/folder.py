# SPDX-License-Identifier: Apache-2.0
"""The output folder of a run: whose it is, what it began with, what came out."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import _json
from .._files import write
from .._version import __version__
from ..models.fingerprint import differences
from .recipes import Recipe

RECIPE, RUN, RESULT = "recipe.toml", "run.json", "result.json"
_FREE = {"log_steps", "eval_steps", "save_steps", "checkpoints", "report_to", "workers", "limit_val"}
"""Keys that a resumed run may change: its weights do not depend on them."""
_PACKAGES = ("torch", "transformers", "accelerate", "peft", "numpy")
_NONE = type(None)
_RUN = {"stage": str, "processes": int, "recipe": dict, "began_with": dict}
_RESULT = {
    "stage": str,
    "steps": int,
    "samples": int,
    "train_loss": (float, _NONE),
    "first_val_loss": (float, _NONE),
    "val_loss": (float, _NONE),
    "tokens": int,
    "seconds": float,
    "out": str,
}


def check_new(folder: Path) -> None:
    """Raises ValueError where something else than a start that failed or was killed is in the folder."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out: {folder} is a file, expected a folder that is new or empty")
    if folder.exists() and not all(_is_of_a_start(path.name) for path in folder.iterdir()):
        raise ValueError(f"out: {folder} is not empty; give a new folder, or --resume the run that it holds")


def start(folder: Path, recipe: Recipe, run: Mapping[str, Any], began_with: Mapping[str, Any]) -> None:
    """Writes what a new run is. `run.json`, in one go, is what makes the folder a run's."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES if _installed(name)}
    versions |= {"patchrec_fast": __version__, "python": platform.python_version()}
    content = {**run, "recipe": dataclasses.asdict(recipe), "began_with": began_with, "versions": versions}
    write(folder / RUN, _json.dumps(content, indent=1))
    recipe.save(folder / RECIPE)


def load_run(folder: Path) -> dict[str, Any]:
    """What `start` wrote.

    Raises:
        FileNotFoundError: no run is there.
        ValueError: a damaged file.
    """
    if not (folder / RUN).is_file():
        raise FileNotFoundError(f"out: {folder} holds no run to resume; it has no {RUN}")
    return dict(_json.load(folder / RUN, _RUN, "the beginning of a run of this version"))


def check_recipe(folder: Path, before: Mapping[str, Any], recipe: Recipe, run: Mapping[str, Any]) -> None:
    """Raises ValueError where a run is of another stage, recipe or number of processes."""
    old = {**before["recipe"], "stage": before["stage"], "processes": before["processes"]}
    new = {**dataclasses.asdict(recipe), "stage": run["stage"], "processes": run["processes"]}
    for name, value in new.items():
        if name not in _FREE and old.get(name) != value:
            raise ValueError(
                f"{name}: the run in {folder} had {old.get(name)!r}, got {value!r}; it cannot be resumed so"
            )


def check_same(folder: Path, before: Mapping[str, Any], began_with: Mapping[str, Any]) -> None:
    """Raises ValueError where a run began with another model, tokenizer, data or prompt."""
    if different := differences(before["began_with"], began_with):
        raise ValueError(
            f"out: the run in {folder} cannot be resumed: what it began with differs in {'; '.join(different)}; "
            "give it what it began with, or start another run in another folder"
        )


def load_result(path: Path) -> dict[str, Any]:
    """What a run came to, by its `result.json`; of an older run too, which said tokens for rows and lacks some keys.

    Raises:
        ValueError: a damaged file.
    """
    what = "a result of patchrec-fast train"
    older = "rows_per_second" not in _json.load(path, dict, what)
    speed = "tokens_per_second" if older else "rows_per_second"
    found = dict(_json.load(path, {**_RESULT, speed: float}, what))
    found["rows_per_second"] = found.pop(speed)
    return found


def _is_of_a_start(name: str) -> bool:
    """Whether it is a file of `start`, or what was left of one that was being written."""
    return name in (RECIPE, RUN) or any(name.startswith(f".{file}.") for file in (RECIPE, RUN))


def _installed(package: str) -> bool:
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False
