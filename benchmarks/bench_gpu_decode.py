# SPDX-License-Identifier: Apache-2.0
"""Recommending on a GPU: `python -m benchmarks.bench_gpu_decode [--out DIR]`.

First, in float32 and with a small model, that all ways give the same titles: steps as a CUDA graph, steps from Python,
transformers' beam search, and for "diverse" the released protocol. Then times in bfloat16 with a Llama of random
weights: 20 beams, users of ML-1M with 100 items, and the paper's Figure 8, its longest users. Then how often a search
waits for the device, and where a profiler sees the time go. A setting is written as soon as it is measured. The
generated sample's tokenizer has a small vocabulary, so the head costs little: for figures that mean something give
--data and --tokenizer. `--device cpu --model tiny --users 1` tries the script.
"""

import argparse
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch

from patchrec_fast import Packer, Recommender
from patchrec_fast.evaluation.profile import SETTINGS, Setting, long_histories
from patchrec_fast.models import SHAPES, random_model
from patchrec_fast.recommend.recommender import Method

from . import bench_decode, harness, machine, results
from .bench_decode import BEAMS, ITEMS, POLICIES, histories_of
from .bench_gpu_train import machine_name, peak_gigabytes, profile, waits
from .peers import OURS, decode_generate, decode_released
from .results import Row
from .source import Source, load

COLUMNS = ("contestant", "median_ms", "users_per_s", "ratio", "syncs", "peak_gb")


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.bench_gpu_decode", description=__doc__)
    parser.add_argument("--data", help="folder with ml-1m; default: the generated sample")
    parser.add_argument("--tokenizer", help="folder of the Llama-3 tokenizer; needed with --data")
    parser.add_argument("--model", choices=SHAPES, default="llama-1b")
    parser.add_argument("--users", type=int, default=16, help="at once, of 100 items")
    parser.add_argument("--long-users", type=int, default=4, help="at once, of Figure 8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", choices=("all", "none"), default="all")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path("report"), help="gets the CSV and the profiles")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("bench_gpu_decode: torch sees no CUDA or ROCm device; nothing was measured", file=sys.stderr)
        return 2
    source = load("ml-1m", options.data, options.tokenizer)
    newest = histories_of(source, options.users)
    longest = [each.tolist() for each in long_histories(source.dataset, more_than=ITEMS, limit=options.long_users)]
    agree(source, newest[:2], options.device)
    place = torch.device(options.device)
    model = random_model(options.model, source.prompt.num_embeddings, torch.bfloat16, place)
    known = {**machine.facts(), "cpu": machine_name(options.device), "model": options.model, "data": source.label}
    settings = [(Setting(name, policy, ITEMS), newest) for name, policy in POLICIES.items()]
    failed = 0
    for setting, histories in [*settings, *((setting, longest) for setting in SETTINGS)]:
        try:
            found = measure(model, source, setting, histories, options)
        except Exception as error:
            failed += 1
            print(f"{setting.name:18}FAILED: {type(error).__name__}: {error}", flush=True)
            continue
        results.append("gpu_decode", [{**known, **row} for row in found], options.out)
        for row in found:
            print(f"{setting.name:18}" + "".join(f"{name} {row[name]}  " for name in COLUMNS), flush=True)
    return 1 if failed else 0


def agree(source: Source, histories: list[list[int]], device: str) -> None:
    """Raises AssertionError where two ways have other titles or scores."""
    model = bench_decode.tiny(source.prompt.num_embeddings, quick=False).to(device)
    for policy in POLICIES.values():
        rec = Recommender(model, Packer(source.catalogue, source.prompt, policy, ITEMS))
        grown = rec.recommend(histories, BEAMS, cuda_graphs=False)
        bench_decode.check(grown, decode_generate.decode(model, rec.packer, histories, BEAMS))
        bench_decode.check(
            rec.recommend(histories, BEAMS, "diverse"),
            decode_released.decode(model, rec.packer, histories, BEAMS),
        )
        if device == "cuda":
            graphed = rec.recommend(histories * 3, BEAMS, cuda_graphs=True, batch_size=2)
            for first in range(0, 3 * len(histories), len(histories)):
                part = slice(first, first + len(histories))
                assert graphed.items[part].tolist() == grown.items.tolist(), "other titles with a CUDA graph"
                assert abs(graphed.scores[part] - grown.scores).max() < 1e-3, "other scores with a CUDA graph"
    print("all ways give the same titles", flush=True)


def measure(
    model: Any, source: Source, setting: Setting, histories: list[list[int]], options: argparse.Namespace
) -> list[Row]:
    """A row for each contestant that fits the memory."""
    rec = Recommender(model, Packer(source.catalogue, source.prompt, setting.policy, setting.max_items))
    with rec.engine():
        calls = contestants(rec, histories, options.device, options.peers == "all" and setting != SETTINGS[-1])
        peaks = {name: peak_gigabytes(call, options.device) for name, call in calls.items()}
        calls = {name: call for name, call in calls.items() if peaks[name] is not None}
        limits = {"min_rounds": 1, "max_rounds": options.rounds, "budget": 20.0}
        sampler = synchronized if options.device == "cuda" else None
        timings = {each.name: each for each in harness.measure(calls, sampler=sampler, **limits)}
        syncs = {name: waits(call) for name, call in calls.items()} if options.device == "cuda" else {}
        first = next(iter(calls))
        file = "-".join(re.findall(r"\w+", setting.name))
        results.write(options.out / f"profile-decode-{file}.txt", profile(calls[first]))
    ratios: dict[str, float] = {}
    for method, (peer, _) in bench_decode.PEERS.items():  # of ours against the peer that searches so
        asked = [timing for name, timing in timings.items() if name == peer or name.startswith(f"{OURS} {method}")]
        ratios |= harness.ratios(asked, [peer])
    made: list[Row] = []
    for name, timing in timings.items():
        milliseconds = timing.milliseconds()
        row: Row = {"setting": setting.name, "users": len(histories), "contestant": name}
        row |= {"median_ms": round(milliseconds, 2), "rounds": len(timing.seconds)}
        row |= {"users_per_s": round(1e3 * len(histories) / milliseconds, 2)}
        row |= {"ratio": round(ratios[name], 2), "syncs": syncs.get(name, "")}
        made.append(row | {"peak_gb": round(peaks[name] or 0, 2)})
    return made


def contestants(rec: Recommender, histories: list[list[int]], device: str, peers: bool) -> dict[str, harness.Call]:
    """By name, ours first."""

    def ours(method: Method, **keywords: Any) -> harness.Call:
        return lambda round_: rec.recommend(histories, BEAMS, method, batch_size=len(histories), **keywords)

    calls = {f"{OURS} beam, no graph": ours("beam", cuda_graphs=False), f"{OURS} diverse": ours("diverse")}
    if device == "cuda":
        calls = {f"{OURS} beam": ours("beam", cuda_graphs=True), **calls}
    if peers:
        calls["transformers generate"] = lambda round_: decode_generate.decode(rec.model, rec.packer, histories, BEAMS)
        calls["released protocol"] = lambda round_: decode_released.decode(rec.model, rec.packer, histories, BEAMS)
    return calls


def synchronized(call: harness.Call, round_: int) -> tuple[float, bool]:
    """Seconds of wall time, host and device."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    call(round_)
    torch.cuda.synchronize()
    return time.perf_counter() - began, False


if __name__ == "__main__":
    sys.exit(main())
