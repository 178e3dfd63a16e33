# SPDX-License-Identifier: Apache-2.0
"""What the scripts for a GPU share: parts, each on its own, within so many minutes, into one table.

A script names its parts, the most telling first. A part's rows are appended to `<out>/gpu.csv` as they come, so what
was measured stays whatever comes after; a part that fails is reported and the next begins; no part begins when the
minutes are over, and those left are named. The exit status is 1 where a part failed. Beside the table there is
`<name>.txt` with what the parts tell besides, such as profiles, and `errors.txt` with the tracebacks.
"""

import argparse
import gc
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from . import device, machine, results
from .results import Row

TABLE = "gpu"
OK = "ok"
NAN = float("nan")

CELL: Row = {
    "data": "",
    **dict.fromkeys(("gpu", "gpu_gb", "driver", "triton", "transformers"), ""),
    **dict.fromkeys(("sheet_tflops", "matmul_tflops", "copy_gb_s"), NAN),
    **dict.fromkeys(("benchmark", "model", "vocabulary", "dtype", "setting", "mode", "users", "beams", "rows"), ""),
}
"""What tells the table's cells apart, behind `machine.facts`: the device (`device.facts` and `device.peaks`), the
script, and its part."""

MEASURED: Row = {
    **dict.fromkeys(("median_ms", "p20_ms", "p80_ms"), NAN),
    **dict.fromkeys(("rounds", "contended"), 0),
    **dict.fromkeys(
        ("ratio", "pack_ms", "prompt_ms", "decode_ms", "wall_ms", "gb_s", "ceiling_share", "floor_ms"), NAN
    ),
    **dict.fromkeys(("tflops", "mfu", "sheet_mfu", "peak_mb", "syncs", "loss", "error"), NAN),
    "status": OK,
}
"""What a row says of its contestant, if nothing else (`results`)."""


class Part(NamedTuple):
    """`measure()` gives rows, whose columns are some of CELL's, MEASURED's, and `contestant`."""

    name: str  # letters, digits, "/", ".", "_" and "-"
    measure: Callable[[], Iterable[Row]]


def arguments(parser: argparse.ArgumentParser, minutes: float) -> None:
    """The options that all scripts have."""
    add = parser.add_argument
    add("--minutes", type=float, default=minutes, help=f"no part begins after so many (default: {minutes:g})")
    add("--only", nargs="+", metavar="NAME", help='parts, or the beginnings of their names before a "/"')
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu tries the script without a GPU")
    add("--sheet-tflops", type=float, help="of the device, dense bfloat16, by its data sheet; default: by its name")
    add("--commit", help="of the tree, where it is a copy without its git repository")
    add("--out", type=Path, default=Path("report"), help="folder for gpu.csv, profiles and tracebacks")
    add("--failed", action="store_true", help=argparse.SUPPRESS)  # an earlier process of this run had a failure
    parser.set_defaults(module=parser.prog.split()[-1])


def missing(parser: argparse.ArgumentParser, options: argparse.Namespace) -> bool:
    """Whether the device that was asked for is not there; says so."""
    if options.device == "cpu" or torch.cuda.is_available():
        return False
    print(f"{parser.prog}: torch sees no CUDA or ROCm device; nothing was measured", file=sys.stderr)
    return True


class Bench:
    """A run of one script.

    Attributes:
        device: "cuda" or "cpu".
        options: the command line's.
        facts: the columns of all rows: `machine.facts`, the device's, and the script's own.
    """

    def __init__(
        self,
        name: str,
        options: argparse.Namespace,
        *,
        peaks: bool = True,
        clock: Callable[[], float] = time.monotonic,
        **known: str | int,
    ) -> None:
        """Begins to count the minutes.

        Args:
            name: of the script, column `benchmark`.
            options: with those of `arguments`.
            peaks: whether what the device can do at most is measured now; else NaN.
            known: columns of CELL that are the same in all rows.
        """
        self._clock, self.options = clock, options
        self._end = clock() + 60 * options.minutes
        self.name, self.device, self.out = name, options.device, options.out
        self.facts: Row = {**machine.facts(), **CELL, **device.facts(self.device, options.sheet_tflops)}
        if self.facts["commit"] == "none" and options.commit:
            self.facts["commit"] = options.commit
        if peaks:
            self.facts |= device.peaks(self.device)
        if self.device == "cuda":
            self.facts["allocator"] = "torch caching"
        self.facts |= {"benchmark": name, **known}
        shown = ("gpu", "gpu_gb", "driver", "torch", "triton", "transformers", "commit")
        print(", ".join(f"{key} {self.facts[key]}" for key in shown))
        most = ("copy_gb_s", "matmul_tflops", "sheet_tflops")
        print(", ".join(f"{key} {self.facts[key]}" for key in most), flush=True)

    def seconds_left(self) -> float:
        return max(0.0, self._end - self._clock())

    def run(self, parts: Sequence[Part]) -> int:
        """All of them, or those that --only names; the exit status.

        Raises:
            ValueError: --only names a part that there is not.
        """
        left, failed = self._chosen(parts), self.options.failed
        while left and self.seconds_left() > 0:
            part, *left = left
            try:
                for row in part.measure():
                    self.append(row)
            except Exception as error:
                failed = True
                self._report(part, error)
            gc.collect()  # what failed may hang in reference cycles
            if self.device == "cuda":
                if left and not device.alive(self.device):
                    self._restart([each.name for each in left])
                torch.cuda.empty_cache()
        if left:
            print(f"--minutes {self.options.minutes:g}: no time for {', '.join(each.name for each in left)}")
        return 1 if failed else 0

    def _chosen(self, parts: Sequence[Part]) -> list[Part]:
        for part in parts:
            if not re.fullmatch(r"[\w./-]+", part.name, re.ASCII):
                raise ValueError(f"parts: expected names of letters, digits, '/', '.', '_' and '-', got {part.name!r}")
        if self.options.only is None:
            return list(parts)
        wanted = {name: [p for p in parts if f"{p.name}/".startswith(f"{name}/")] for name in self.options.only}
        if unknown := [name for name, found in wanted.items() if not found]:
            raise ValueError(f"--only: expected some of {', '.join(p.name for p in parts)}, got {', '.join(unknown)}")
        chosen = {part.name for found in wanted.values() for part in found}
        return [part for part in parts if part.name in chosen]

    def append(self, row: Row) -> None:
        """Into the table, and a line of what it says.

        Raises:
            ValueError: a column that the table has not.
        """
        whole = {**self.facts, "contestant": "", **MEASURED, **row}
        if len(whole) != len(self.facts) + 1 + len(MEASURED):
            raise ValueError(f"row: the table has no columns {sorted(set(row) - {*self.facts, *MEASURED})}")
        results.append(TABLE, [whole], self.out)
        cell = " ".join(str(row[key]) for key in ("users", "setting", "mode", "dtype") if row.get(key, "") != "")
        said = [
            f"{key} {whole[key]}" for key in MEASURED if whole[key] == whole[key] and (key in row or key == "status")
        ]
        print(f"{cell:32} {row.get('contestant', '')!s:28} " + "  ".join(said), flush=True)

    def note(self, title: str, text: str) -> None:
        """What is no row, behind what is in `<name>.txt`."""
        self._add(f"{self.name}.txt", f"== {title}\n{text}\n\n")

    def _report(self, part: Part, error: Exception) -> None:
        line = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        print(f"{part.name} FAILED: {line}", flush=True)
        self._add("errors.txt", f"== {self.name}, {part.name}\n{''.join(traceback.format_exception(error))}\n")
        self.append({"setting": part.name, "status": f"failed: {line}"})

    def _add(self, file: str, text: str) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / file).open("a", encoding="utf-8") as opened:
            opened.write(text)

    def _restart(self, names: list[str]) -> None:
        """The parts left in a process of their own, in place of this one, whose device answers no more."""
        print(f"the device answers no more; {', '.join(names)} in a new process", flush=True)
        minutes = f"{self.seconds_left() / 60:.3f}"
        options = [*sys.argv[1:], "--failed", "--minutes", minutes, "--only", *names]
        os.execv(sys.executable, [sys.executable, "-m", self.options.module, *options])


def record(path: Path, folder: Path = results.FOLDER) -> int:
    """Appends the rows of a run to the recorded ones; how many.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: rows that are of no commit, or of a run that tried a script on a CPU; nothing is written.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected a table that the scripts wrote")
    found = results.read(path.stem, path.parent)
    if bad := sorted({row["commit"] for row in found if row["commit"] == "none" or row["commit"].endswith("+")}):
        raise ValueError(f"{path}: expected rows of a commit, got some of {', '.join(bad)}")
    if any(row["gpu_gb"] == "0.0" for row in found):
        raise ValueError(f"{path}: expected rows of a GPU, got some of --device cpu")
    results.append(TABLE, [dict(row) for row in found], folder)
    return len(found)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"{record(Path(name))} rows of {name}")
