# SPDX-License-Identifier: Apache-2.0
"""`pytest --benchmark`: runs benchmarks/ in place of tests/. Plain pytest never does."""

import os
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("patchrec-fast benchmarks")
    add = group.addoption
    add("--benchmark", action="store_true", help="run benchmarks/ in place of tests/")
    add("--quick", action="store_true", help="a few rounds of one narrow shape: that they still run")
    add("--record", action="store_true", help="append the results to benchmarks/results/*.csv; needs a committed tree")
    add("--threads", type=int, metavar="N", help="default: as many as torch takes by itself")
    add("--shapes", metavar="A,B", help="comma-separated, of benchmarks/shapes.py; default: all")
    add("--data", metavar="DIR", help="folder with ml-1m and goodreads; default: PATCHREC_FAST_DATA")
    add("--tokenizer", metavar="DIR", help="Llama-3 tokenizer; default: PATCHREC_FAST_TOKENIZER")


def pytest_configure(config: pytest.Config) -> None:
    if not config.option.benchmark:
        return
    config.addinivalue_line("python_files", "bench_*.py")
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = [str(BENCHMARKS)]
    if config.option.record:
        from benchmarks.checkout import Uncommitted, require_committed

        try:
            require_committed()
        except Uncommitted as error:
            raise pytest.UsageError(f"--record: {error}") from error
    config.option.data = config.option.data or os.environ.get("PATCHREC_FAST_DATA")
    config.option.tokenizer = config.option.tokenizer or os.environ.get("PATCHREC_FAST_TOKENIZER")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    inside = BENCHMARKS in (collection_path, *collection_path.parents)
    return True if inside and not config.option.benchmark else None
