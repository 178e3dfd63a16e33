# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.demo`: what compression saves, and how fast it is, on this machine.

Packs long users and the test split of MovieLens-1M, or of the generated sample where no data is
named, as text, with item patches and with session patches. Counts tokens, times packing and
compress against its peers, and writes a plot and its numbers.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from patchrec_fast import ItemPatches, PackedBatch, Packer, SessionPatches, Text
from patchrec_fast.evaluation import measure_compression
from patchrec_fast.layout import Policy

from . import cells, figures, harness, machine, results, shapes
from .cells import Workload
from .peers import OURS, contestants
from .source import Source, load

POLICIES: dict[str, Policy] = {
    "Text()": Text(),
    "ItemPatches(5)": ItemPatches(5),
    "SessionPatches(5)": SessionPatches(5),
}
COLOURS = dict(zip(POLICIES, ("#0072B2", "#009E73", "#D55E00"), strict=True))
LONG_USERS, LONG = 64, 500  # at most so many, with more items than that
TIMED_USERS = 8  # of them in a batch of compress
MODES = ("forward", "dense", "accumulate")


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.demo", description=__doc__)
    environment = os.environ.get
    parser.add_argument("--data", default=environment("PATCHREC_FAST_DATA"), help="folder that holds ml-1m")
    parser.add_argument("--tokenizer", default=environment("PATCHREC_FAST_TOKENIZER"), help="Llama-3's tokenizer")
    parser.add_argument("--out", type=Path, default=Path("report"), help="gets demo.png, demo.json")
    options = parser.parse_args()
    from tqdm import tqdm

    source = load("ml-1m", options.data or None, options.tokenizer or None)
    print(f"{source.label}: {source.dataset!r}")
    users = long_users(source)
    savings = token_savings(source, users)
    print_savings(savings)
    speed = packing_speed(source, users)
    print("\nPacking the long users, one core")
    for name, found in speed.items():
        print(f"  {name:20}{found['histories_per_s']:>10,.0f} histories/s")
        print(f"  {'':20}{found['items_per_s'] / 1e6:>10.1f} million items/s")

    batches = timed_batches(source, users)
    # One table in bfloat16 keeps the process near 2 GB; two in float32, as `make bench` has them, take 6.
    work = Workload(batches, shapes.tables(torch.bfloat16)[:1])
    times = {
        mode: cells.measure(work, mode, contestants(mode), max_rounds=9, budget=1.5)
        for mode in tqdm(MODES, desc="timing compress", disable=None)
    }
    print_times(times, batches)

    numbers = {"data": source.label, **machine.facts(), "tokens": savings, "packing": speed}
    text = json.dumps({**numbers, "compress": times}, indent=1)
    results.write(options.out / "demo.json", text + "\n")
    print()
    figures.save(draw(source, users, savings, times), options.out / "demo.png")
    return 0


def long_users(source: Source) -> list[NDArray[np.int32]]:
    """The longest histories: those of more than 500 items, at least eight of them, at most 64."""
    dataset = source.dataset
    lengths = np.diff(dataset.offsets)
    order = np.argsort(-lengths, kind="stable")
    count = min(max(int((lengths > LONG).sum()), TIMED_USERS), LONG_USERS, len(dataset))
    return [dataset.items[dataset.offsets[u] : dataset.offsets[u + 1]] for u in order[:count]]


def packer(source: Source, policy: Policy, max_items: int | None) -> Packer:
    return Packer(source.catalogue, source.prompt, policy, max_items)


def token_savings(source: Source, users: list[NDArray[np.int32]]) -> dict[str, dict[str, Any]]:
    """For each set of histories and policy, the three countings and the mean tokens of a prompt."""
    histories, _ = source.dataset.split("test")
    sets: dict[str, tuple[Any, int | None]] = {
        f"{len(users)} longest users, whole": (users, None),
        f"test split, {len(histories[1]) - 1:,} prompts, newest 100 items": (histories, 100),
    }
    found: dict[str, dict[str, Any]] = {}
    for title, (what, limit) in sets.items():
        for name, policy in POLICIES.items():
            measured = measure_compression(packer(source, policy, limit), what)
            found.setdefault(title, {})[name] = {
                "catalogue": measured.catalogue,
                "history": measured.history,
                "prompt": measured.prompt,
                "tokens": measured.rows,
            }
    return found


def print_savings(savings: dict[str, dict[str, Any]]) -> None:
    print("\nTimes fewer tokens than text, counted in three ways, and tokens a prompt:")
    print("  catalogue: mean title, no separators (the paper's way); history: real titles, no")
    print("  separators; prompt: all that the model reads, with separators and template")
    for title, policies in savings.items():
        print(f"\n  {title:50}{'catalogue':>10}{'history':>10}{'prompt':>10}{'tokens':>10}")
        for name, row in policies.items():
            ratios = "".join(f"{row[key]:>10.2f}" for key in ("catalogue", "history", "prompt"))
            print(f"    {name:48}{ratios}{row['tokens']:>10,.0f}")


def packing_speed(source: Source, users: list[NDArray[np.int32]]) -> dict[str, dict[str, float]]:
    """Median speed over some rounds, the policies interleaved."""
    packers = {name: packer(source, policy, None) for name, policy in POLICIES.items()}
    calls: dict[str, harness.Call] = {
        name: lambda round_, packs=packs: packs.pack(users)  # type: ignore[misc]
        for name, packs in packers.items()
    }
    items = sum(map(len, users))
    return {
        timing.name: {
            "histories_per_s": len(users) / timing.milliseconds() * 1e3,
            "items_per_s": items / timing.milliseconds() * 1e3,
        }
        for timing in harness.measure(calls, budget=0.5)
    }


def timed_batches(source: Source, users: list[NDArray[np.int32]]) -> list[PackedBatch]:
    """Up to four batches of long users in session patches."""
    packs = packer(source, SessionPatches(5), None)
    starts = range(0, len(users) - TIMED_USERS + 1, TIMED_USERS)
    made = [packs.pack(users[start : start + TIMED_USERS]) for start in starts[: shapes.BATCHES]]
    return [shapes.spread(batch, source) for batch in made]


def print_times(times: dict[str, list[results.Row]], batches: list[PackedBatch]) -> None:
    size = shapes.Size.of(batches[0])
    print(
        f"\ncompress, {TIMED_USERS} long users a batch ({size.tokens:,} tokens into {size.rows:,} rows), "
        f"d={shapes.WIDTH}, bf16, {torch.get_num_threads()} thread(s): median ms, times faster than the best peer"
    )
    names = dict.fromkeys(row["contestant"] for rows in times.values() for row in rows)
    print(f"  {'':22}" + "".join(f"{cell:>19}" for cell in times))
    for name in names:
        line = f"  {name:22}"
        for rows in times.values():
            row = next((row for row in rows if row["contestant"] == name), None)
            line += f"{row['median_ms']:>11.4g}{row['ratio']:>7.3g}x" if row else " " * 19
        print(line)


def draw(
    source: Source,
    users: list[NDArray[np.int32]],
    savings: dict[str, dict[str, Any]],
    times: dict[str, list[results.Row]],
) -> Any:
    """Left: tokens of every user's whole history. Right: times of compress."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 6.2), layout="constrained")
    halves: Any = figure.subfigures(1, 2, width_ratios=(1.15, 1), wspace=0.03)
    left, right = halves
    axes = left.subplots()
    dataset = source.dataset
    lengths = np.diff(dataset.offsets)
    whole = (dataset.items, dataset.offsets)
    for name, policy in POLICIES.items():
        rows = np.diff(packer(source, policy, None).pack(whole).cu_seqlens.numpy())
        axes.plot(lengths, rows, ".", color=COLOURS[name], markersize=4, alpha=0.35, linewidth=0)
        last = int(lengths.argmax())
        note = f"{name}\n{rows[last]:,} tokens"
        axes.annotate(
            note, (lengths[last], rows[last]), (8, 0), textcoords="offset points",
            color=COLOURS[name], va="center", fontsize=9, fontweight="bold",
        )  # fmt: skip
    axes.set_xlim(0, lengths.max() * 1.36)
    axes.set_ylim(0)
    axes.set_xlabel("items in the user's history")
    axes.set_ylabel("tokens that the language model reads")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    ratio = next(iter(savings.values()))["SessionPatches(5)"]["prompt"]
    axes.set_title(
        f"{source.label}: {len(dataset):,} users, one dot a prompt\n"
        f"the {len(users)} longest: {ratio:.1f}x fewer tokens with session patches",
        loc="left",
        fontsize=11,
    )
    axes.grid(alpha=0.25, linewidth=0.6)
    figures.plain(axes)

    panels = right.subplots(len(MODES), 1)
    for panel, mode in zip(panels, MODES, strict=True):
        title = figures.TITLES[mode].replace("\n", " ")
        figures.time_bars(panel, times[mode], title)
    panels[-1].set_xlabel("milliseconds, median", fontsize=9)
    threads = torch.get_num_threads()
    right.suptitle(
        f"compress on {machine.cpu_name()},\nbf16, {TIMED_USERS} long users, {threads} thread(s); "
        f"{OURS} against plain PyTorch",
        fontsize=11, x=0.02, ha="left",
    )  # fmt: skip
    return figure


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
