# SPDX-License-Identifier: Apache-2.0
"""compress on a GPU: `python -m benchmarks.bench_gpu [--out DIR]`.

A part is a mode and a shape: every contestant against float64, then times against the peers and a copy ceiling; at
the end CUDA-graph capture and where a profiler sees the time go. Times are CUDA events around one call, the queue kept
full so that the host's own time is not in them; `wall_ms` is a call's wall time, host included. Ours runs twice: with
the plan that a data loader makes (the fast path) and without, sorting on the device.

`ceiling_share` counts every row that is gathered; of those that a batch repeats some come from the cache, so it may
pass 1. `floor_ms` is what the rows take that memory must move, each once, as fast as the device was measured to copy.
A peer that fails is left out, and its row says why. `--device cpu --shapes loop --width 64` tries the script.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor

from . import cells, device, gpu, harness
from .cells import Workload
from .gpu import Bench, Part
from .harness import Call, turn
from .peers import OURS, Contestant, contestants, ours
from .results import Row
from .shapes import LONG, LOOP, SHAPES, WIDTH, batches, load_source
from .shapes import tables as make_tables
from .source import Source, synthetic

Measure = Callable[[Workload], Iterator[Row]]
_MODES = ("forward", "dense", "accumulate", "sparse")
_TITLE = {"ml-1m": 3.94, "goodreads": 9.82}
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_SHAPES = {"A": SHAPES["A"], "long": LONG, **SHAPES, "loop": LOOP}  # the most telling first
_DEFAULT = ("A", "long", "A16", "B", "C")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.bench_gpu", description=__doc__)
    parser.add_argument("--data", help="folder with ml-1m and goodreads; default: synthetic ids")
    parser.add_argument("--tokenizer", help="folder of the Llama-3 tokenizer; needed with --data")
    parser.add_argument("--shapes", default=",".join(_DEFAULT), help=f"of {','.join(_SHAPES)}")
    parser.add_argument("--dtypes", default="bf16", help="of bf16,fp32")
    parser.add_argument("--modes", default=",".join(_MODES))
    parser.add_argument("--width", type=int, default=WIDTH, help="of a row of the table")
    parser.add_argument("--rounds", type=int, default=20)
    gpu.arguments(parser, minutes=3)
    options = parser.parse_args(arguments)
    asked = {}
    for name, known in (("shapes", _SHAPES), ("dtypes", _DTYPES), ("modes", _MODES)):
        asked[name] = getattr(options, name).split(",")
        if unknown := set(asked[name]) - set(known):
            parser.error(f"--{name}: expected some of {', '.join(known)}, got {sorted(unknown)}")
    if gpu.missing(parser, options):
        return 2

    bench = Bench("compress", options)
    tables = cache(lambda dtype: make_tables(_DTYPES[dtype], options.width, options.device))

    @cache
    def work(shape: str, dtype: str) -> Workload:
        made = batches(_SHAPES[shape], source(shape), plan=True)
        return Workload([batch.to(options.device) for batch in made], tables(dtype))

    def source(shape: str) -> Source:
        data = _SHAPES[shape].data
        return load_source(data, options.data, options.tokenizer) if options.data else synthetic(_TITLE[data])

    def cell(measured: Measure, shape: str, dtype: str, mode: str) -> Iterator[Row]:
        known: Row = {"data": source(shape).label, "setting": shape, "dtype": dtype, "mode": mode}
        known |= {"users": _SHAPES[shape].users, "vocabulary": len(tables(dtype)[0])}
        for row in measured(work(shape, dtype)):
            yield {**known, "rows": work(shape, dtype).sizes[0].rows, **row}

    names = [(shape, dtype) for dtype in asked["dtypes"] for shape in asked["shapes"]]
    measures = {mode: partial(measure, bench, mode, options.rounds) for mode in asked["modes"]}
    measures |= {"graph": partial(capture, options.device), "profile": partial(profiles, bench)}
    return bench.run(
        [
            Part(f"{mode}/{dtype}/{shape}", partial(cell, measured, shape, dtype, mode))
            for mode, measured in measures.items()
            for shape, dtype in names
        ]
    )


def measure(bench: Bench, mode: str, rounds: int, work: Workload) -> Iterator[Row]:
    """A row for each contestant of a mode, and one for each peer that is left out."""
    bare = ours(mode)
    planless = Contestant(f"{OURS}, no plan", lambda b, dtype: replace(b, plan=None), bare.compress)
    field = [bare, planless]
    for peer in contestants(mode, gpu=True)[1:]:
        if peer.name == "per-item loop":  # host-bound: seconds
            continue
        reason = why_not(peer, work, mode)
        if reason is None:
            field.append(peer)
        else:
            yield {"contestant": peer.name, "status": f"left out: {reason}"}
    ceiling: cells.Ceiling = copy_call if bench.device == "cuda" else harness.ceiling_call
    take = device.between_events if bench.device == "cuda" else None
    limits = {"min_rounds": min(3, rounds), "max_rounds": rounds, "budget": 20.0, "sampler": take}
    rows = cells.measure(work, mode, field, ceiling, **limits)
    with cells.gradients(work, mode):
        wall = {each.name: device.wall_ms(work.call(each, mode), bench.device) for each in field}
    least = sum(size.least_rows_moved(mode) for size in work.sizes) / len(work.sizes)
    floor = least * work.tables[0][0].nbytes / float(bench.facts["copy_gb_s"]) / 1e6
    for row in rows:
        name = str(row["contestant"])
        more: Row = {} if name == cells.CEILING else {"wall_ms": round(wall[name], 4), "floor_ms": round(floor, 4)}
        yield row | more


def why_not(peer: Contestant, work: Workload, mode: str) -> str | None:
    """None where a peer runs, and is right; else what it raised."""
    try:
        cells.check(work, peer)
        with cells.gradients(work, mode):
            work.call(peer, mode)(0)
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return None


def copy_call(made: list[Tensor], ids: list[Tensor], rows: list[int]) -> Call:
    """The ceiling: one contiguous copy that reads and writes as many bytes as a forward moves."""
    halves = [(len(part) + count + 1) // 2 for part, count in zip(ids, rows, strict=True)]
    source = torch.zeros(max(halves), made[0].shape[1], dtype=made[0].dtype, device=made[0].device)
    target = torch.zeros_like(source)

    def call(round_: int) -> object:
        half = halves[turn(round_, len(halves))]
        return target[:half].copy_(source[:half])

    return call


def capture(place: str, work: Workload) -> Iterator[Row]:
    """Captures forward and backward into an existing gradient, replays them, and compares bits with a call.

    Raises:
        AssertionError: other bits.
    """
    if place == "cpu":
        return
    contestant, batch, table = ours("accumulate"), work.batches[0], work.tables[0]
    table.grad = torch.zeros_like(table)
    upstream = work.upstream[0]
    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # compiles the kernels
                contestant.compress(table, batch).backward(upstream)
        torch.cuda.current_stream().wait_stream(stream)
        table.grad.zero_()
        eager = contestant.compress(table, batch)
        eager.backward(upstream)
        gradient = table.grad.clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = contestant.compress(table, batch)
            out.backward(upstream)
        table.grad.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, eager), "the replayed output differs"
        assert torch.equal(table.grad, gradient), "the replayed gradient differs"
    finally:
        table.grad = None
    yield {"contestant": f"{OURS}, replayed", "error": 0.0}


def profiles(bench: Bench, work: Workload) -> Iterator[Row]:
    """Kernels by device time, for each mode; no rows."""
    for mode in _MODES:
        with cells.gradients(work, mode):
            bench.note(f"{mode}, {work.sizes[0]}", device.profile(work.call(ours(mode), mode), bench.device, 5))
    yield from ()


if __name__ == "__main__":
    sys.exit(main())
