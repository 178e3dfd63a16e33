# SPDX-License-Identifier: Apache-2.0
"""Reads what other commands wrote. Every error names the file."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

from .. import _json
from ..evaluation import Report
from ..evaluation.profile import Profile

if TYPE_CHECKING:
    from ..train.curves import Point

Paths = Iterable[str | os.PathLike[str]]
_PROFILE: dict[str, Any] = get_type_hints(Profile)
_LINES = "expected lines with a contestant, its median and its ratio, as the benchmarks record them"


class Run(NamedTuple):
    """Of `patchrec-fast train`; without a result where it is not finished."""

    name: str
    points: list[Point]
    result: dict[str, Any] | None
    settings: dict[str, Any]  # stage, model and data, and what the recipe has otherwise than the defaults


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
    from ..train.folder import RUN, load_result
    from ..train.recipes import Recipe

    paths = [Path(folder) for folder in folders]
    found = []
    for path, name in zip(paths, _names(paths), strict=True):
        result, curves = path / "result.json", _file(path / "curves.csv", "an output folder of patchrec-fast train")
        points = read(curves)
        if not all(math.isfinite(value) for point in points for value in (point.step, point.loss, point.tokens)):
            raise ValueError(f"{curves}: expected finite numbers")
        settings: dict[str, Any] = {}
        if (path / RUN).is_file():
            begun = _json.load(path / RUN, {"recipe": dict}, "the beginning of a run of patchrec-fast train")
            defaults = vars(Recipe())
            settings = {key: begun[key] for key in ("stage", "model", "data") if key in begun}
            settings |= {key: value for key, value in begun["recipe"].items() if defaults.get(key) != value}
        found.append(Run(name, points, load_result(result) if result.is_file() else None, settings))
    return found


def card(data: str | os.PathLike[str] | None) -> dict[str, Any] | None:
    """The card of a data set; None where it has none.

    Raises:
        ValueError: not a card.
    """
    file = None if data is None else Path(data) / "card.json"
    return _json.load(file, dict, "the card of a data set") if file is not None and file.is_file() else None


def evaluations(paths: Paths) -> list[Report]:
    """Output folders of `patchrec-fast evaluate`, its report.json files, or what its `--json` printed.

    Raises:
        OSError: no such file.
        ValueError: not a report.
    """
    found = []
    for path in paths:
        file = _file(_inside(path, "report.json"), "an output of patchrec-fast evaluate")
        content = _json.load(file, dict, what := "an output of patchrec-fast evaluate")
        if "report" in content:  # of the command: the library's, and more
            content = _json.load(
                file, {"report": dict} | ({"baselines": [dict]} if "baselines" in content else {}), what
            )
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
        content = _json.load(file, {"compared": [_PROFILE], "growth": [_PROFILE]}, "a profile of patchrec-fast profile")
        compared, growth = (
            [Profile(**{field: entry[field] for field in Profile._fields}) for entry in content[key]]
            for key in ("compared", "growth")
        )
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
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file, strict=True))
            for number, row in enumerate(rows, 2):
                _check_line(row, number)
        except (csv.Error, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error
        if not rows:
            raise ValueError(f"{path}: {_LINES}")
        found.append(Benchmark(path.stem, rows))
    return found


def _check_line(row: dict[str, str], number: int) -> None:
    if not {"contestant", "ratio"} <= row.keys() or not {"median_ms", "median_per_s"} & row.keys():
        raise ValueError(_LINES)
    if None in row or None in row.values():
        raise ValueError(f"line {number}: more or fewer values than columns")
    try:
        fits = not float(row["ratio"]) < 0  # NaN: nothing to compare with
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"line {number}: ratio: expected a number of at least 0, got {row['ratio'][:40]!r}")


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


def _names(paths: list[Path]) -> list[str]:
    """The folders' names where these differ, else the paths as given."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]
