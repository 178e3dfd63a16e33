# SPDX-License-Identifier: Apache-2.0
"""A training step on a GPU: `python -m benchmarks.bench_gpu_train [--out DIR]`.

Ours against padded and packed batches on stock sdpa, a Llama of random weights in bfloat16, 16 users of ML-1M with 100
items. For each stage: losses agree, then step time, model flops utilisation and the memory that a step adds at its
highest, then how often a step of ours waits for the device, then where a profiler sees the time go. A stage is written
as soon as it is measured; a trainer that does not fit the memory, or has another loss, is not timed.
`--device cpu --model tiny --users 2` tries the script without a GPU.
"""

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from patchrec_fast import PackedBatch
from patchrec_fast.models import SHAPES, random_model

from . import bench_gpu, harness, machine, results
from .bench_train import POLICIES, batches, calls
from .peers import OURS
from .peers.training import LOOP, TRAINERS
from .results import Row
from .source import Source, load, synthetic

COUNT = 2  # different batches
TOLERANCE = 2e-2  # of bfloat16 losses, relative: eight bits, and sums in another order
# Dense bfloat16, in 10**12 a second, from the vendor's data sheets.
PEAKS = {"A100": 312.0, "H100 PCIe": 756.0, "H100": 989.0, "H200": 989.0, "B200": 2250.0}


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.bench_gpu_train", description=__doc__)
    parser.add_argument("--data", help="folder with ml-1m; default: synthetic ids")
    parser.add_argument("--tokenizer", help="folder of the Llama-3 tokenizer; needed with --data")
    parser.add_argument("--model", choices=SHAPES, default="llama-1b")
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--peak-tflops", type=float, help="of the device, dense bfloat16; default: by its name")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path("report"), help="gets the CSV and the profiles")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("bench_gpu_train: torch sees no CUDA or ROCm device; nothing was measured", file=sys.stderr)
        return 2
    source = load("ml-1m", options.data, options.tokenizer) if options.data else synthetic(3.94)
    peak = options.peak_tflops or peak_of(machine_name(options.device))
    model = random_model(
        options.model, source.prompt.num_embeddings, torch.bfloat16, torch.device(options.device)
    ).train()
    facts = {**machine.facts(), "cpu": machine_name(options.device), "model": options.model, "data": source.label}
    failed = 0
    for stage in POLICIES:
        try:
            rows = measure(model, stage, source, options.users, options.device, peak, options.out)
        except Exception as error:
            failed += 1
            print(f"{stage:8}FAILED: {type(error).__name__}: {error}", flush=True)
            continue
        results.append("gpu_train", [{**facts, **row} for row in rows], options.out)
        for row in rows:
            print(f"{stage:8}" + "".join(f"{name} {row[name]}  " for name in COLUMNS), flush=True)
    return 1 if failed else 0


COLUMNS = ("contestant", "median_ms", "ratio", "mfu", "peak_gb", "syncs", "loss")


def machine_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else machine.facts()["cpu"]


def peak_of(name: str) -> float:
    """Of a device by its name; not a number where it is not known."""
    return next((peak for key, peak in PEAKS.items() if key in name), float("nan"))


def measure(
    model: Any, stage: str, source: Source, users: int, device: str, peak: float, out: Path, rounds: int = 5
) -> list[Row]:
    """A row for each trainer; times of those that fit the memory and have our loss."""
    made = [batch.to(device) for batch in batches(source, POLICIES[stage], users, COUNT)]
    shared = batches(source, POLICIES[stage], users, COUNT, share=True, plan=device == "cuda")
    shared = [batch.to(device) for batch in shared]
    timed = calls(model, made, shared, [each for each in TRAINERS if each.name != LOOP])
    peaks = {name: peak_gigabytes(call, device) for name, call in timed.items()}
    losses = {name: float(call(0)[1]) for name, call in timed.items() if peaks[name] is not None}
    timed = {name: call for name, call in timed.items() if name in losses and agrees(losses[name], losses.get(OURS))}
    sampler = bench_gpu.sample if device == "cuda" else None
    timings = {each.name: each for each in harness.measure(timed, max_rounds=rounds, sampler=sampler)}
    ratios = harness.ratios(list(timings.values()), [name for name in peaks if name != OURS])
    syncs = waits(timed[OURS]) if device == "cuda" and OURS in timed else float("nan")
    if OURS in timed:
        results.write(out / f"profile-train-{stage}.txt", profile(timed[OURS]))
    rows: list[Row] = []
    for name in peaks:
        own = shared if name == OURS else made
        row: Row = {"stage": stage, "users": users, "rows": len(own[0].position_ids), "contestant": name}
        useful = sum([flops(model, batch) for batch in own]) / len(own)
        seconds = timings[name].milliseconds() / 1e3 if name in timings else float("nan")
        row |= {"median_ms": round(seconds * 1e3, 2), "ratio": round(ratios.get(name, float("nan")), 2)}
        row |= {"mfu": round(useful / seconds / peak / 1e12, 4), "syncs": syncs if name == OURS else float("nan")}
        row |= {"peak_gb": "out of memory" if peaks[name] is None else round(peaks[name] or 0, 2)}
        rows.append(row | {"loss": losses.get(name, float("nan"))})
    return rows


def peak_gigabytes(call: harness.Call, device: str) -> float | None:
    """What a first call adds at its highest, gradients included, weights not; None where it does not fit."""
    if device == "cpu":
        return machine.peak_megabytes(lambda: call(0)) / 1e3
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    try:
        call(0)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None
    return (torch.cuda.max_memory_allocated() - before) / 1e9


def agrees(loss: float, ours: float | None) -> bool:
    """Whether a trainer's loss is ours; any is where ours does not fit the memory."""
    return ours is None or abs(loss - ours) <= TOLERANCE * abs(ours)


def flops(model: Any, batch: PackedBatch) -> float:
    """Useful ones of a forward and a backward: every row through the layers, causal attention, supervised rows alone
    through the last MLP and the head."""
    config, layers, rows = model.config, model.model.layers, len(batch.position_ids)
    supervised = len(batch.model_inputs()["supervised_rows"])
    body, last = (sum(weight.numel() for weight in part.parameters()) for part in (layers, layers[-1].mlp))
    bounds = batch.cu_seqlens if batch.segments is None else batch.segments.cu_seqlens
    queries = bounds.diff().double()
    keys = queries + batch.position_ids[bounds[:-1]]  # a segment's positions go on from what it sees
    seen = float((keys**2 - (keys - queries) ** 2).sum())
    attention = 2 * config.num_hidden_layers * config.hidden_size * seen
    products = body * rows - last * (rows - supervised) + supervised * config.vocab_size * config.hidden_size
    return 3 * (2 * products + attention)


def waits(call: harness.Call) -> int:
    """How often a step makes the host wait for the device."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            call(0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in seen)


def profile(call: harness.Call) -> str:
    """Operators by time in three steps."""
    from torch.profiler import profile as profiler

    with profiler() as seen:
        for round_ in range(3):
            call(round_)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    order = "device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    return seen.key_averages().table(sort_by=order, row_limit=25)


if __name__ == "__main__":
    sys.exit(main())
