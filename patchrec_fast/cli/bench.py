# SPDX-License-Identifier: Apache-2.0
"""`patchrec-fast bench`: the benchmarks of a checkout of the repository."""

import argparse
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import patchrec_fast

from .numbers import whole

EXAMPLE = """  patchrec-fast bench --quick
  patchrec-fast bench --data path/to/data --tokenizer path/to/tokenizer --record
  patchrec-fast bench compress --shapes A16,A --threads 1"""
_MARK = Path("benchmarks", "conftest.py")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="only these, such as compress, packing, train (default: all)")
    add("--quick", action="store_true", help="a few rounds of one narrow shape: that they still run")
    add("--record", action="store_true", help="append the results to benchmarks/results/*.csv")
    add("--threads", type=whole(1), metavar="N", help="default: as many as torch takes by itself")
    add("--shapes", metavar="A,B", help="of benchmarks/shapes.py (default: all)")
    add("--data", metavar="DIR", help="folder with ml-1m and goodreads (default: $PATCHREC_FAST_DATA, else a sample)")
    add("--tokenizer", metavar="DIR", help="Llama-3's (default: $PATCHREC_FAST_TOKENIZER, else the sample's)")


def run(options: argparse.Namespace) -> int:
    root = checkout()
    if root is None:
        raise FileNotFoundError(
            "the benchmarks are not part of an installed package: clone the repository, and install it from there with "
            "pip install --editable"
        )
    if importlib.util.find_spec("pytest_benchmark") is None:
        raise ImportError("the benchmarks need pytest-benchmark: pip install pytest-benchmark")
    known = benchmarks(root)
    for name in options.names:
        if name not in known:
            raise ValueError(f"NAME: expected one of {', '.join(known)}, got {name!r}")
    flags = [f"--{name}" for name in ("quick", "record") if getattr(options, name)]
    for name in ("threads", "shapes", "data", "tokenizer"):
        if (value := getattr(options, name)) is not None:
            flags.append(f"--{name}={os.path.abspath(value) if name in ('data', 'tokenizer') else value}")
    command = [sys.executable, "-m", "pytest", "--benchmark", *flags, *(known[name] for name in options.names)]
    return subprocess.run(command, cwd=root).returncode


def checkout() -> Path | None:
    """The repository that this package is imported from; never the working directory, whose code is not asked for."""
    root = Path(patchrec_fast.__file__).resolve().parents[1]
    project = root / "pyproject.toml"
    ours = project.is_file() and 'name = "patchrec_fast"' in project.read_text(encoding="utf-8")
    return root if ours and (root / _MARK).is_file() else None


def benchmarks(root: Path) -> dict[str, str]:
    """Names of the benchmarks that pytest runs, and their files; `benchmarks/results/NAME.csv` is what they record."""
    files = sorted(path for path in root.glob("benchmarks/bench_*.py") if "\ndef test_" in path.read_text())
    return {path.stem.removeprefix("bench_"): str(path.relative_to(root)) for path in files}
