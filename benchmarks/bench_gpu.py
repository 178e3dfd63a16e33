# SPDX-License-Identifier: Apache-2.0
"""compress on a GPU: `python -m benchmarks.bench_gpu [--out DIR]`.

In this order: every contestant against float64, CUDA-graph capture, times against the peers and a
copy ceiling, and where a profiler sees the time go. Times are CUDA events around one call, the
queue kept full so that the host's own time is not in them; wall time of a call, host included, is
the `eager` column. Ours runs twice: with the plan that a data loader makes (the fast path) and
without, sorting on the device. `ceiling_share` counts every row that is gathered; of those that a
batch repeats some come from the cache, so it may pass 1.

A cell is written as soon as it is measured. A peer that fails is left out, and said; if ours does,
the cell is left out and the exit status is 1.
"""

import argparse
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from . import cells, machine, results, tables
from .cells import Workload
from .harness import Call, turn
from .peers import OURS, Contestant, contestants, ours
from .results import Row
from .shapes import SHAPES, Size, batches, load_source
from .shapes import tables as make_tables
from .source import Source, synthetic

_MODES = ("forward", "dense", "accumulate", "sparse")
_TITLE = {"ml-1m": 3.94, "goodreads": 9.82}
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_WAIT_CYCLES = 10_000_000  # about 5 milliseconds, in which the host queues the sample's launches, 250 without a plan


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.bench_gpu", description=__doc__)
    parser.add_argument("--data", help="folder with ml-1m and goodreads; default: synthetic ids")
    parser.add_argument("--tokenizer", help="folder of the Llama-3 tokenizer; needed with --data")
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--dtypes", default="bf16", help="of bf16,fp32")
    parser.add_argument("--modes", default=",".join(_MODES))
    parser.add_argument("--out", type=Path, default=Path("report"), help="gets the CSV and profile")
    options = parser.parse_args()
    for name, known in (("shapes", SHAPES), ("dtypes", _DTYPES), ("modes", _MODES)):
        if unknown := set(getattr(options, name).split(",")) - set(known):
            parser.error(f"--{name}: expected some of {', '.join(known)}, got {sorted(unknown)}")
    if not torch.cuda.is_available():
        print("bench_gpu: torch sees no CUDA or ROCm device; nothing was measured", file=sys.stderr)
        return 2

    failed = 0
    for dtype in options.dtypes.split(","):
        made = make_tables(_DTYPES[dtype], device="cuda")
        for name in options.shapes.split(","):
            source = _source(SHAPES[name].data, options.data, options.tokenizer)
            work = workload(name, source, made)
            print(f"{SHAPES[name]}, {dtype}, {source.label}: {work.sizes[0]}", flush=True)
            print(f"  CUDA graph: {capture(work)}", flush=True)
            for mode in options.modes.split(","):
                cell = {"data": source.label, "shape": name, "dtype": dtype, "mode": mode}
                try:
                    rows: list[Row] = [{**facts(), **cell, **row} for row in measure(work, mode)]
                except Exception as error:
                    failed += 1
                    print(f"  {mode} FAILED: {type(error).__name__}: {error}", flush=True)
                    continue
                results.append("gpu", rows, options.out)
                print(tables.compress(rows, {}).split("\n\n")[-1], flush=True)
            results.write(options.out / f"profile-{name}-{dtype}.txt", profile(work))
    return 1 if failed else 0


def _source(name: str, data: str | None, tokenizer: str | None) -> Source:
    return load_source(name, data, tokenizer) if data else synthetic(_TITLE[name])


def facts() -> machine.Facts:
    return {**machine.facts(), "cpu": torch.cuda.get_device_name(), "allocator": "torch caching"}


def workload(name: str, source: Source, made: list[Tensor]) -> Workload:
    """The shape's batches on the device, each with the plan a data loader makes."""
    return Workload([batch.to("cuda") for batch in batches(SHAPES[name], source, plan=True)], made)


def measure(work: Workload, mode: str) -> list[Row]:
    """All contestants of a mode, with the eager wall time of each."""
    field = contestants(mode)
    bare = ours(mode)
    planless = Contestant(f"{OURS}, no plan", lambda b, dtype: replace(b, plan=None), bare.compress)
    field.insert(1, planless)
    field = [each for each in field if each.name != "per-item loop"]  # host-bound: seconds
    field = [each for each in field if each.name.startswith(OURS) or works(each, work, mode)]
    rounds = {"min_rounds": 20, "max_rounds": 20, "sampler": sample}
    rows = cells.measure(work, mode, field, copy_call, **rounds)
    with cells.gradients(work, mode):
        eager = {each.name: _eager(work.call(each, mode)) for each in field}
    return [{**row, "eager_ms": round(eager.get(str(row["contestant"]), 0), 4)} for row in rows]


def works(peer: Contestant, work: Workload, mode: str) -> bool:
    """Whether a peer runs, and is right; why not is printed."""
    try:
        cells.check(work, peer)
        with cells.gradients(work, mode):
            work.call(peer, mode)(0)
    except Exception as error:
        print(f"  {mode}, {peer.name} left out: {type(error).__name__}: {error}", flush=True)
        torch.cuda.empty_cache()
        return False
    return True


def sample(call: Call, round_: int) -> tuple[float, bool]:
    """(seconds, False) between two events; the device sleeps first, so that launches are queued."""
    _flush()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(_WAIT_CYCLES)
    start.record()
    result = call(round_)
    end.record()
    torch.cuda.synchronize()
    del result
    return start.elapsed_time(end) * 1e-3, False


@cache
def _l2() -> Tensor:
    return torch.zeros(64 << 20, device="cuda")  # 256 MiB, more than any L2


def _flush() -> None:
    _l2().add_(1)


def _eager(call: Call, repeats: int = 10) -> float:
    """Milliseconds of wall time a call, host and device, one call after another."""
    call(0)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for round_ in range(repeats):
        call(round_)
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / repeats * 1e3


def copy_call(made: list[Tensor], ids: list[Tensor], rows: list[int]) -> Call:
    """The ceiling: one contiguous copy that reads and writes as many bytes as a forward moves."""
    halves = [(len(part) + count + 1) // 2 for part, count in zip(ids, rows, strict=True)]
    source = torch.zeros(max(halves), made[0].shape[1], dtype=made[0].dtype, device="cuda")
    target = torch.zeros_like(source)

    def call(round_: int) -> object:
        half = halves[turn(round_, len(halves))]
        return target[:half].copy_(source[:half])

    return call


def capture(work: Workload) -> str:
    """Captures forward and backward into an existing gradient, replays them, and compares bits."""
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
        same = torch.equal(out, eager) and torch.equal(table.grad, gradient)
        return "captured, replay is bit for bit the eager result" if same else "replay DIFFERS"
    except RuntimeError as error:
        return f"capture FAILED: {error}"
    finally:
        table.grad = None


def profile(work: Workload) -> str:
    """Kernels by device time, for each mode, over five calls."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    parts = []
    for mode in _MODES:
        call = work.call(ours(mode), mode)
        with cells.gradients(work, mode):
            call(0)
            with profiler(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
                for round_ in range(5):
                    call(round_)
                torch.cuda.synchronize()
        summary = seen.key_averages().table(sort_by="device_time_total", row_limit=15)
        parts.append(f"{mode}, 5 calls\n{summary}")
    return "\n".join([str(Size.of(work.batches[0])), *parts])


if __name__ == "__main__":
    sys.exit(main())
