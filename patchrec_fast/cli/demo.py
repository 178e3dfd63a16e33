# SPDX-License-Identifier: Apache-2.0
"""`patchrec-fast demo`: the other commands one after another, on MovieLens or on a generated dataset."""

import argparse
import os
import shlex
import subprocess
import sys
import time
import webbrowser
from collections.abc import Iterator
from pathlib import Path

from .._options import SAMPLE
from .._text import printable
from .bench import benchmarks, checkout
from .folders import folder
from .main import INTERRUPTED, main
from .numbers import whole

EXAMPLE = """  patchrec-fast demo
  patchrec-fast demo --data path/to/data/ml-1m --steps 400 --out report"""
_DOWNLOADED = "ml-1m"
_BATCH = 64  # of the tiny recipe
_LONG = 400  # items of a history that is profiled
_PROGRAM = "patchrec-fast"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--data",
        type=folder(SAMPLE),
        metavar="DIR",
        help=f'a prepared dataset, or "{SAMPLE}" (default: ml-1m or ml-100k in $PATCHREC_FAST_DATA, else {_DOWNLOADED} '
        "is downloaded, else the generated one)",
    )
    add(
        "--out",
        default="report",
        metavar="DIR",
        help="gets runs and report.html; an interrupted demo goes on there (default: report)",
    )
    add("--steps", type=whole(1), default=120, metavar="N", help="optimizer steps of each stage (default: 120)")
    add("--samples", type=whole(1), default=300, metavar="N", help="of the test split (default: 300)")


def run(options: argparse.Namespace) -> int:
    try:
        return _run(options)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("the same command goes on from here") from error


def _run(options: argparse.Namespace) -> int:
    import numpy as np

    from ..train.start import open_data

    out = Path(options.out)
    begun = time.perf_counter()
    data = options.data or _found() or _downloaded(out) or SAMPLE
    dataset = open_data(data)
    print(f"data: {printable(data)}: {dataset!r}")
    longest = int(np.diff(dataset.offsets).max())
    for title, command in stages(data, longest, out.resolve(), options.steps, options.samples):
        print(f"\n== {title}\n$ {printable(shlex.join(command))}", flush=True)
        since = time.perf_counter()
        if status := _perform(command):
            return status
        print(f"-- {time.perf_counter() - since:.0f} s")
    report = out.resolve() / "report.html"
    print(f"\n{time.perf_counter() - begun:.0f} s in all. Open {printable(str(report))}")
    if _watched():
        webbrowser.open(report.as_uri())
    return 0


def _watched() -> bool:
    """Whether somebody sits in front: a terminal, and a screen for a browser."""
    screen = sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    return screen and sys.stdout.isatty()


def stages(data: str, longest: int, out: Path, steps: int, samples: int) -> Iterator[tuple[str, list[str]]]:
    """Titles and commands, in order.

    Args:
        data: as the commands take it.
        longest: items of its longest history.
        out: gets everything.
        steps: optimizer steps of each training stage.
        samples: how many are evaluated.
    """
    from ..evaluation.profile import lengths_for
    from ..train.folder import RUN

    runs = {name: str(out / name) for name in ("text", "pretrain", "pft-s")}
    tests = {name: str(out / f"{name}-test") for name in ("text", "pft-s")}
    profile = str(out / "profile")
    tiny = ["--model", "tiny", "--tokenizer", os.environ.get("PATCHREC_FAST_TOKENIZER", SAMPLE)]
    flags = ["--data", data, "--recipe", "tiny", "--steps", str(steps), "--limit-train", str(steps * _BATCH)]
    for stage, start in (("text", tiny), ("pretrain", tiny), ("pft-s", ["--model", runs["pretrain"]])):
        resume = ["--resume"] if (out / stage / RUN).is_file() else []
        yield f"Train: {stage}", [_PROGRAM, "train", "--stage", stage, *start, *flags, "--out", runs[stage], *resume]
    for name, test in tests.items():
        flags = ["--model", runs[name], "--data", data, "--limit", str(samples), "--baselines", "--out", test]
        yield f"Evaluate: {name}", [_PROGRAM, "evaluate", *flags]
    lengths = [str(length) for length in lengths_for(longest) if length <= _LONG]
    flags = ["--model", runs["pft-s"], "--data", data, "--users", "2"]
    yield "What long users cost", [_PROGRAM, "profile", *flags, "--lengths", *lengths, "--out", profile]
    seen = ["--run", *runs.values(), "--evaluation", *tests.values(), "--profile", profile, "--data", data]
    seen += ["--model", runs["pft-s"]]
    root = checkout()
    if root is not None:
        parent = str(Path(data).resolve().parent) if Path(data).name == _DOWNLOADED else ""  # empty: the generated one
        flags = ["--data", parent, "--out", str(out)]
        yield "compress against its peers", [sys.executable, "-m", "benchmarks.demo", *flags]
        recorded = [root / "benchmarks" / "results" / f"{name}.csv" for name in benchmarks(root)]
        there = [str(file) for file in recorded if file.is_file()]
        seen += ["--bench", *there] if there else []
    yield "Report", [_PROGRAM, "report", "--out", str(out / "report.html"), *seen]


def _perform(command: list[str]) -> int:
    """One of our commands in this process, any other, of the checkout, in its own."""
    ours = command[0] == _PROGRAM
    status = main(command[1:]) if ours else subprocess.run(command, cwd=checkout()).returncode
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    return status


def _found() -> str | None:
    """A prepared dataset of $PATCHREC_FAST_DATA."""
    root = os.environ.get("PATCHREC_FAST_DATA")
    folders = [Path(root, name) for name in ("ml-1m", "ml-100k")] if root else []
    return next((str(folder) for folder in folders if folder.is_dir()), None)


def _downloaded(out: Path) -> str | None:
    """MovieLens-1M, prepared; None where it cannot be had."""
    from ..data.download import download

    prepared = out / "data" / _DOWNLOADED
    if (prepared / "card.json").is_file():
        return str(prepared)
    try:
        raw = download(_DOWNLOADED, out / "raw", attempts=1)
    except OSError as error:
        print(f"no download ({printable(str(error))}); the dataset is a generated one")
        return None
    command = [_PROGRAM, "data", "prepare", _DOWNLOADED, "--raw", str(raw), "--out", str(prepared)]
    return str(prepared) if _perform(command) == 0 else None
