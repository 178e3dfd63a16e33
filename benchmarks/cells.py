# SPDX-License-Identifier: Apache-2.0
"""A cell is one shape, dtype and mode of compress: the timed calls, and what their times say."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from patchrec_fast import PackedBatch

from . import gate, harness
from .harness import Call, Timing, turn
from .peers import OURS, Contestant
from .results import Row
from .shapes import Size

CEILING = "ceiling"
Ceiling = Callable[[list[Tensor], list[Tensor], list[int]], Call]
LEARNING_RATE = 1e-9  # the work of a step without moving the table


@dataclass
class Workload:
    """Batches and tables that rounds take in turn."""

    batches: list[PackedBatch]
    tables: list[Tensor]  # each (V, d), leaves
    upstream: list[Tensor] = field(init=False)  # of each batch, (R, d)
    sizes: list[Size] = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        d, dtype, device = self.tables[0].shape[1], self.dtype, self.tables[0].device
        rows = [len(batch.position_ids) for batch in self.batches]
        self.upstream = [torch.randn(r, d, generator=generator).to(device, dtype) for r in rows]
        self.sizes = [Size.of(batch) for batch in self.batches]

    @property
    def dtype(self) -> torch.dtype:
        return self.tables[0].dtype

    def call(self, contestant: Contestant, mode: str) -> Call:
        """The contestant's work of one round; what it prepares of a batch is made here, untimed."""
        prepared = [contestant.prepare(batch, self.dtype) for batch in self.batches]

        def call(round_: int) -> object:
            batch = turn(round_, len(self.batches))
            table = self.tables[turn(round_, len(self.tables), every=len(self.batches))]
            return step(contestant, mode, table, prepared[batch], self.upstream[batch])

        return call

    def megabytes(self, mode: str) -> float:
        """Mean over the batches of the bytes that the mode has to move, in units of 10**6."""
        rows = sum(size.table_rows_moved(mode) for size in self.sizes) / len(self.sizes)
        return rows * self.tables[0][0].nbytes / 1e6


def step(contestant: Contestant, mode: str, table: Tensor, prepared: Any, upstream: Tensor) -> object:
    """One sample's work in a mode of `peers.MODES`."""
    if mode == "forward":
        with torch.no_grad():
            return contestant.compress(table, prepared)
    out = contestant.compress(table, prepared)
    if mode == "accumulate":
        return out.backward(upstream)
    (gradient,) = torch.autograd.grad(out, table, upstream)
    if mode == "dense+sgd":
        with torch.no_grad():
            table.add_(gradient, alpha=-LEARNING_RATE)
    return gradient


def measure(
    work: Workload,
    mode: str,
    contestants: list[Contestant],
    ceiling: Ceiling = harness.ceiling_call,
    **rounds: Any,
) -> list[Row]:
    """Gates every contestant, then times all of them and the ceiling.

    Args:
        ceiling: makes the call that moves a forward's bytes, from tables, ids and numbers of rows.
        rounds: for `harness.measure`.

    Returns:
        One row a contestant: median, p20 and p80 in ms, rounds, contended samples, `ratio` (times
        faster than the best peer; above 1 is faster), GB/s of `Size.table_rows_moved`, and the share
        of the GB/s of the ceiling in the same cell.

    Raises:
        gate.WrongAnswer: a contestant does not compute compress.
    """
    for contestant in contestants:
        check(work, contestant)
    calls = {each.name: work.call(each, mode) for each in contestants}
    ids, sizes = [batch.ids for batch in work.batches], [size.rows for size in work.sizes]
    calls[CEILING] = ceiling(work.tables, ids, sizes)
    with gradients(work, mode):
        return rows(harness.measure(calls, **rounds), work, mode)


def check(work: Workload, contestant: Contestant) -> None:
    """Raises gate.WrongAnswer where a contestant does not compute compress, in float64 or the workload's dtype."""
    for dtype in dict.fromkeys((torch.float64, work.dtype)):
        gate.check(contestant, work.batches[0], dtype)


@contextmanager
def gradients(work: Workload, mode: str) -> Iterator[None]:
    """The tables have gradients to add to, where the mode does, and none afterwards."""
    try:
        if mode == "accumulate":
            for table in work.tables:
                table.grad = torch.zeros_like(table)
        yield
    finally:
        for table in work.tables:
            table.grad = None


def rows(timings: list[Timing], work: Workload, mode: str) -> list[Row]:
    """See `measure`."""
    ratios = harness.ratios(timings, [timing.name for timing in timings if not _ours_or_ceiling(timing.name)])
    megabytes = {timing.name: work.megabytes(mode) for timing in timings}
    megabytes[CEILING] = work.megabytes("forward")
    speed = {each.name: megabytes[each.name] / each.milliseconds() for each in timings}  # GB/s
    return [
        {
            "contestant": timing.name,
            "median_ms": round(timing.milliseconds(), 4),
            "p20_ms": round(timing.milliseconds(0.2), 4),
            "p80_ms": round(timing.milliseconds(0.8), 4),
            "rounds": len(timing.seconds),
            "contended": timing.contended,
            "ratio": round(ratios[timing.name], 4),
            "gb_s": round(speed[timing.name], 4),
            "ceiling_share": round(speed[timing.name] / speed[CEILING], 3),
        }
        for timing in timings
    ]


def _ours_or_ceiling(name: str) -> bool:
    return name == CEILING or name.startswith(OURS)
