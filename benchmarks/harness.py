# SPDX-License-Identifier: Apache-2.0
"""Times contestants against each other, in one process, interleaved.

A round takes one sample of each contestant, in random order and on the same batch, so that a slow
minute of the machine hits all of them and their ratio inside the round stands. Before a sample the
last-level cache is written over. A sample during which the scheduler ran something else in our
place is taken again.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

CACHE_BYTES = 48 << 20  # written before each sample: more than the last-level cache
LOST_SHARE = 0.04  # of a sample's wall time, taken by others: above it, the sample is taken again
RETRIES = 3

Call = Callable[[int], object]
"""One sample's work in the given round; what it returns is freed when the clock has stopped."""


@dataclass(frozen=True)
class Timing:
    """One contestant's samples in a cell (shape, dtype, mode)."""

    name: str
    seconds: NDArray[np.float64]  # (rounds,)
    contended: int  # samples that stayed disturbed after all retries; they are in `seconds`

    def milliseconds(self, quantile: float = 0.5) -> float:
        """Quantile over the rounds."""
        return float(np.quantile(self.seconds, quantile)) * 1e3

    def times_faster_than(self, other: "Timing") -> float:
        """Median of the per-round ratios: above 1 where this one takes less time."""
        return float(np.median(other.seconds / self.seconds))


def measure(
    calls: dict[str, Call],
    *,
    min_rounds: int = 3,
    max_rounds: int = 20,
    budget: float = 4.0,
    seed: int = 0,
    sampler: Callable[[Call, int], tuple[float, bool]] | None = None,
) -> list[Timing]:
    """Rounds until `budget` seconds are spent, within the bounds.

    Args:
        calls: contestants by name.
        sampler: takes one sample, (seconds, disturbed); None takes `sample`.
    """
    take = sampler or sample
    rng = np.random.default_rng(seed)
    names = list(calls)
    rounds: list[dict[str, tuple[float, bool]]] = []
    started = time.perf_counter()
    while len(rounds) < min_rounds or (len(rounds) < max_rounds and time.perf_counter() - started < budget):
        order = rng.permutation(names).tolist()
        rounds.append({name: take(calls[name], len(rounds)) for name in order})
    return [Timing(name, np.array([r[name][0] for r in rounds]), sum(r[name][1] for r in rounds)) for name in names]


def best(timings: list[Timing], names: list[str]) -> Timing:
    """The one of `names` with the least median."""
    return min((t for t in timings if t.name in names), key=Timing.milliseconds)


def ratios(timings: list[Timing], peers: list[str]) -> dict[str, float]:
    """A result's `ratio`, by name: how many times faster than the best of `peers`; NaN where none was measured."""
    if not any(timing.name in peers for timing in timings):
        return dict.fromkeys((timing.name for timing in timings), float("nan"))
    reference = best(timings, peers)
    return {timing.name: timing.times_faster_than(reference) for timing in timings}


def sample(call: Call, round_: int) -> tuple[float, bool]:
    """(seconds, disturbed) of one call; of disturbed samples alone, the one that lost least."""
    tries = []
    for _ in range(1 + RETRIES):
        seconds, lost = once(call, round_)
        if lost <= LOST_SHARE:
            return seconds, False
        tries.append((lost, seconds))
    return min(tries)[1], True


def once(call: Call, round_: int) -> tuple[float, float]:
    """(seconds, the share of them that others took) of one call, for one that cannot be taken again."""
    alone = torch.get_num_threads() == 1
    flush_cache()
    cpu, waited, began = time.thread_time(), _waited(), time.perf_counter()
    result = call(round_)
    seconds = time.perf_counter() - began
    lost = seconds - (time.thread_time() - cpu) if alone else _waited() - waited
    del result
    return seconds, lost / seconds


def _waited() -> float:
    """Seconds that this process's threads stood ready while others ran (Linux; elsewhere 0)."""
    files = Path("/proc/self/task").glob("*/schedstat")
    return sum(int(file.read_text().split()[1]) for file in files) * 1e-9


@cache
def _filler() -> Tensor:
    return torch.zeros(CACHE_BYTES // 4)


def flush_cache() -> None:
    """Reads and writes more than the last-level cache holds (a plain fill may go past the caches)."""
    _filler().add_(1)


def ceiling_call(tables: list[Tensor], ids: list[Tensor], rows: list[int]) -> Call:
    """The machine's own ceiling for a forward, taken like any contestant.

    A batch's T rows are read, in the batch's own order, by the fastest reader of rows that torch
    has (embedding_bag, into 512 sums, so that next to nothing is written), and R rows of memory
    touched before are filled. So it moves compress's bytes, allocates nothing big, and waits for no
    row to be done before the next is read.
    """
    out = torch.zeros(max(rows), tables[0].shape[1], dtype=tables[0].dtype)
    cuts = [torch.linspace(0, len(part), _SUMS + 1).long() for part in ids]
    wide = [part.long() for part in ids]

    @torch.no_grad()
    def call(round_: int) -> None:
        batch, table = turn(round_, len(ids)), tables[turn(round_, len(tables), every=len(ids))]
        F.embedding_bag(wide[batch], table, cuts[batch], mode="sum", include_last_offset=True)
        out[: rows[batch]].fill_(1)

    return call


_SUMS = 512  # few enough to write little: 64 and 512 take the same time, 2,048 longer


def turn(round_: int, count: int, every: int = 0) -> int:
    """Which of `count` batches (or tables) a round uses; `every` rounds the order moves on by one,
    so that a batch meets every table."""
    return (round_ + (round_ // every if every else 0)) % count
