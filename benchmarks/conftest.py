# SPDX-License-Identifier: Apache-2.0
"""Options to objects, and the tables at the end of the run."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from . import machine, results, shapes, tables
from .cells import Workload
from .results import Row
from .source import Source

ROWS = pytest.StashKey[dict[str, list[Row]]]()
NOTES = pytest.StashKey[dict[str, float]]()

Recorder = Callable[[str, list[Row], Row], None]


@dataclass(frozen=True)
class Settings:
    """What the command line asked for."""

    data: str | None
    tokenizer: str | None
    quick: bool

    @property
    def rounds(self) -> dict[str, Any]:
        """For `harness.measure`."""
        return {"min_rounds": 2, "max_rounds": 2} if self.quick else {}

    def source(self, name: str) -> Source:
        return shapes.load_source(name, self.data, self.tokenizer)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS], config.stash[NOTES] = {}, {}


@pytest.fixture(scope="session")
def settings(request: pytest.FixtureRequest) -> Iterator[Settings]:
    option = request.config.option
    before = torch.get_num_threads()
    torch.set_num_threads(option.threads or before)
    yield Settings(option.data, option.tokenizer, option.quick)
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def record(request: pytest.FixtureRequest) -> Recorder:
    """Keeps rows for the table at the end and, with --record, appends them to the results."""

    def keep(name: str, rows: list[Row], cell: Row) -> None:
        facts = machine.facts()
        full = [{**facts, **cell, **row} for row in rows]
        request.config.stash[ROWS].setdefault(name, []).extend(full)
        if request.config.option.record:
            results.append(name, full)

    return keep


class Workloads:
    """Makes workloads; keeps the last tables and the last batches, for cells come in that order."""

    def __init__(self, settings: Settings, notes: dict[str, float]) -> None:
        self._settings, self._notes = settings, notes
        self._dtype: torch.dtype | None = None
        self._shape: shapes.Shape | None = None

    def get(self, shape: shapes.Shape, dtype: torch.dtype) -> Workload:
        quick = self._settings.quick
        if dtype != self._dtype:
            self._work, self._tables = None, []  # freed before the next ones are made
            self._tables = shapes.tables(dtype, shapes.QUICK_WIDTH if quick else shapes.WIDTH)
            self._dtype, self._shape = dtype, None
            for name, speed in machine.copy_speeds(self._tables[0]).items():
                label = f"{name}, {self._tables[0][0].nbytes} bytes each" if "row" in name else name
                self._notes[label] = speed
        if shape != self._shape:
            source = self._settings.source(shape.data)
            made = shapes.batches(shape, source, 2 if quick else shapes.BATCHES)
            self._work, self._shape = Workload(made, self._tables), shape
        assert self._work is not None
        return self._work


@pytest.fixture(scope="session")
def workloads(settings: Settings, request: pytest.FixtureRequest) -> Workloads:
    return Workloads(settings, request.config.stash[NOTES])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    config = terminalreporter.config
    for name, rows in config.stash[ROWS].items():
        terminalreporter.section(f"{name} benchmark")
        terminalreporter.write_line(tables.FORMATS[name](rows, config.stash[NOTES]))
