# SPDX-License-Identifier: Apache-2.0
"""Reads what other commands wrote. Every error names the file."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..evaluate import Report
from ..evaluate.profile import Profile

if TYPE_CHECKING:
    from ..train.curves import Point

Paths = Iterable[str | os.PathLike[str]]


class Run(NamedTuple):
    """Of `patchrec-fast train`; without a result where it is not finished."""

    name: str
    points: list[Point]
    result: dict[str, Any] | None


class Profiles(NamedTuple):
    """Of `patchrec-fast profile`."""

    name: str
    compared: list[Profile]
    growth: list[Profile]


class Benchmark(NamedTuple):
    """Of `patchrec-fast bench --record`: the lines of a CSV file."""

    name: str
    rows: list[dict[str, str]]


def runs(folders: Paths) -> list[Run]:
    """Output folders of training.

    Raises:
        OSError: no such folder, or it has no curves.
        ValueError: a damaged file.
    """
    from ..train.curves import read  # imports transformers
    from ..train.folder import load_result

    paths = [Path(folder) for folder in folders]
    found = []
    for path, name in zip(paths, _names(paths), strict=True):
        result, curves = path / "result.json", _file(path / "curves.csv", "an output folder of patchrec-fast train")
        found.append(Run(name, read(curves), load_result(result) if result.is_file() else None))
    return found


def evaluations(paths: Paths) -> list[Report]:
    """Output folders of `patchrec-fast evaluate`, its report.json files, or what its `--json` printed.

    Raises:
        OSError: no such file.
        ValueError: not a report.
    """
    found = []
    for path in paths:
        file = _file(_inside(path, "report.json"), "an output of patchrec-fast evaluate")
        content = _json(file)
        entries = [content["report"], *content.get("baselines", [])] if "report" in content else [content]
        found += [report for entry in entries if (report := _report(file, entry)) not in found]  # baselines come again
    return found


def profiles(paths: Paths) -> list[Profiles]:
    """Output folders of `patchrec-fast profile`, or its profile.json files.

    Raises:
        OSError: no such file.
        ValueError: not a profile.
    """
    files = [_file(_inside(path, "profile.json"), "an output of patchrec-fast profile") for path in paths]
    found = []
    for file, name in zip(files, _names([file.parent for file in files]), strict=True):
        content = _json(file)
        try:
            compared, growth = ([Profile(**entry) for entry in content[key]] for key in ("compared", "growth"))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{file}: not a profile of patchrec-fast profile ({error!r})") from error
        found.append(Profiles(name, compared, growth))
    return found


def benchmarks(paths: Paths) -> list[Benchmark]:
    """CSV files with a line a contestant.

    Raises:
        OSError: no such file.
        ValueError: not recorded by the benchmarks.
    """
    found = []
    for path in map(Path, paths):
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if not rows or "contestant" not in rows[0] or None in rows[0] or not {"ratio", "ours_faster"} & rows[0].keys():
            raise ValueError(f"{path}: expected lines with a contestant and its ratio, as the benchmarks record them")
        found.append(Benchmark(path.stem, rows))
    return found


def _report(file: Path, entry: Any) -> Report:
    try:
        return Report.from_dict(entry)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"{file}: not a report of patchrec-fast evaluate ({error!r})") from error


def _inside(path: str | os.PathLike[str], name: str) -> Path:
    """A folder's file, or the file itself."""
    return Path(path) / name if Path(path).is_dir() else Path(path)


def _file(file: Path, expected: str) -> Path:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file, expected {expected}")
    return file


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(content).__name__}")
    return content


def _names(paths: list[Path]) -> list[str]:
    """The folders' names where these differ, else the paths as given."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]
