# SPDX-License-Identifier: Apache-2.0
"""A training step on a GPU: `python -m benchmarks.bench_gpu_train [--out DIR]`.

A Llama of random weights in bfloat16, users of ML-1M with 100 items, the paper's batch of 16. A part is so many users,
a stage, and whom ours stands against: "stock" is padded and packed batches on stock sdpa, "loop" the released code's
loop. Losses agree, then step time, model flops utilisation, of the rate measured on this very device (`mfu`) and of
the data sheet's (`sheet_mfu`), the memory that a step adds at its highest, how often a step of ours waits for the
device, and where a profiler sees the time go. A trainer that does not fit the memory, or has another loss, is not
timed, and its row says so.

The table of embeddings has 128,320 rows: Llama-3's vocabulary and the three marks, in whole blocks of 64, as rows of
logits are aligned then; `--vocabulary 128259` is without. `--device cpu --model tiny --users 2` tries the script.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import Any

import torch

from patchrec_fast import PackedBatch
from patchrec_fast.models import SHAPES, random_model

from . import device, gpu, harness
from .bench_train import POLICIES, batches, calls
from .gpu import OK, Bench, Part
from .peers import OURS
from .peers.training import LOOP, TRAINERS
from .results import Row
from .source import Source, load, synthetic

STAGES = ("pft-s", "text", "pft-i")  # the most telling first
COUNT = 2  # different batches
TOLERANCE = 2e-2  # of bfloat16 losses, relative: eight bits, and sums in another order
VOCABULARY = 128_320
OUT_OF_MEMORY = "out of memory"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.bench_gpu_train", description=__doc__)
    parser.add_argument("--data", help="folder with ml-1m; default: synthetic ids")
    parser.add_argument("--tokenizer", help="folder of the Llama-3 tokenizer; needed with --data")
    parser.add_argument("--model", choices=SHAPES, default="llama-1b")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY, help="rows of the embedding table")
    parser.add_argument("--users", type=int, nargs="+", default=[16], help="of a step; several are several parts")
    parser.add_argument("--rounds", type=int, default=5)
    gpu.arguments(parser, minutes=4)
    options = parser.parse_args(arguments)
    if gpu.missing(parser, options):
        return 2
    source = load("ml-1m", options.data, options.tokenizer) if options.data else synthetic(3.94)
    check_vocabulary(parser, options.vocabulary, source)
    known = {"model": options.model, "vocabulary": options.vocabulary, "data": source.label, "dtype": "bf16"}
    bench = Bench("train", options, **known)
    place = torch.device(options.device)
    model = cache(lambda: random_model(options.model, options.vocabulary, torch.bfloat16, place).train())
    order = [(users, stage, "stock") for users in options.users for stage in STAGES]
    order.insert(len(STAGES), (options.users[0], "pft-s", "loop"))
    order.append((options.users[0], "text", "loop"))
    return bench.run(
        [
            Part(f"{users}/{stage}/{against}", partial(measure, bench, model, stage, source, users, against))
            for users, stage, against in order
        ]
    )


def check_vocabulary(parser: argparse.ArgumentParser, vocabulary: int, source: Source) -> None:
    """Ends the program where the table would lack tokens of the prompt."""
    needed = source.prompt.num_embeddings
    if vocabulary < needed:
        parser.error(f"--vocabulary: expected at least the {needed} of the prompts' tokenizer, got {vocabulary}")
    print(f"the embedding table has {vocabulary} rows, {needed} of them for the tokenizer of {source.label}")


def measure(bench: Bench, make: Any, stage: str, source: Source, users: int, against: str) -> Iterator[Row]:
    """A row for each trainer; times of those that fit the memory and have our loss."""
    model, policy, rounds = make(), POLICIES[stage], bench.options.rounds
    made = [batch.to(bench.device) for batch in batches(source, policy, users, COUNT)]
    shared = batches(source, policy, users, COUNT, share=True, plan=bench.device == "cuda")
    shared = [batch.to(bench.device) for batch in shared]
    field = [each for each in TRAINERS if each.attached or (each.name == LOOP) == (against == "loop")]
    timed = calls(model, made, shared, field)
    peaks, losses = first_calls(model, timed, bench.device)
    status = {name: state(peaks[name], losses.get(name), losses.get(OURS)) for name in timed}
    timed = {name: call for name, call in timed.items() if status[name] == OK}
    limits: dict[str, Any] = {"min_rounds": 1, "max_rounds": rounds, "budget": 20.0}
    take = device.sampler(bench.device) if against == "stock" else device.wall_sampler(bench.device)  # a loop is host
    timings = {each.name: each for each in harness.measure(timed, sampler=take, **limits)}
    ratios = harness.ratios(list(timings.values()), [each.name for each in field if not each.attached])
    for name in peaks:
        own = shared if name == OURS else made
        row: Row = {"setting": stage, "mode": against, "users": users, "rows": len(own[0].position_ids)}
        row |= {"contestant": name, "loss": round(losses.get(name, gpu.NAN), 4), "status": status[name]}
        if (peak := peaks[name]) is not None:
            row |= {"peak_mb": round(peak)}
        if name in timings:
            useful = sum(flops(model, batch) for batch in own) / len(own) / 1e12
            row |= timing_row(timings[name], ratios[name]) | utilisation(bench, useful, timings[name])
        if name == OURS and name in timings:
            row |= {"syncs": device.waits(timed[name], bench.device)}
            row |= {"wall_ms": round(device.wall_ms(timed[name], bench.device, rounds), 2)}
        yield row
    if OURS in timed and against == "stock":
        bench.note(f"{stage}, {users} users", device.profile(timed[OURS], bench.device))


def first_calls(
    model: Any, timed: dict[str, harness.Call], place: str
) -> tuple[dict[str, float | None], dict[str, float]]:
    """What each first call adds at its highest, gradients included, weights not, and its loss if it fits."""
    peaks: dict[str, float | None] = {}
    losses: dict[str, float] = {}
    for name, call in timed.items():
        answers: list[Any] = []
        model.zero_grad(set_to_none=True)  # a peer that did not fit left some
        peaks[name] = device.peak_megabytes(lambda call=call, answers=answers: answers.append(call(0)), place)  # type: ignore[misc]
        for own, loss in answers:
            losses[name] = float(loss)
            own.zero_grad(set_to_none=True)  # else the next call would seem to add so much less
    return peaks, losses


def state(peak: float | None, loss: float | None, ours: float | None) -> str:
    """A row's status: where ours does not fit the memory, any loss is right."""
    if peak is None or loss is None:
        return OUT_OF_MEMORY
    agrees = ours is None or abs(loss - ours) <= TOLERANCE * abs(ours)
    return OK if agrees else "another loss than ours"


def timing_row(timing: harness.Timing, ratio: float) -> Row:
    """Its times and how many times faster it is than the cell's best peer."""
    times = {
        name: round(timing.milliseconds(q), 3) for name, q in (("median_ms", 0.5), ("p20_ms", 0.2), ("p80_ms", 0.8))
    }
    return {**times, "rounds": len(timing.seconds), "contended": timing.contended, "ratio": round(ratio, 3)}


def utilisation(bench: Bench, teraflops: float, timing: harness.Timing) -> Row:
    """Useful operations a second, and their share of what the device was measured to do, and of its data sheet."""
    rate = teraflops / (timing.milliseconds() / 1e3)
    row: Row = {"tflops": float(f"{rate:.4g}")}
    for column, peak in (("mfu", "matmul_tflops"), ("sheet_mfu", "sheet_tflops")):
        row[column] = float(f"{rate / float(bench.facts[peak] or gpu.NAN):.4g}")
    return row


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


if __name__ == "__main__":
    sys.exit(main())
