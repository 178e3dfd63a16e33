# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.page`: makes the tables of docs/benchmarks.md and docs/gpu.md from the recorded results.

Their prose is written by hand; what stands between `<!-- table: NAME -->` and `<!-- end -->` is made here, of the
last record of each cell.
"""

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from . import gpu_page, gpu_tables, markdown, results
from .bench_segments import DENSE, GATHERED
from .bench_train import PART
from .bench_visits import FRESH, KEPT
from .by_user import POOLED, REFERENCE
from .figures import latest
from .markdown import Record
from .peers import MODES, OURS
from .shapes import SHAPES

PAGES = tuple(Path(__file__).parents[1] / "docs" / name for name in ("benchmarks.md", "gpu.md"))

_BLOCK = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
_MODES = {
    "forward": "forward",
    "sparse": "forward + backward, sparse",
    "accumulate": "forward + backward into an existing gradient",
    "dense": "forward + backward, dense",
    "dense+sgd": "the same + `p.add_(grad)`",
}
_HEAPS = {"glibc": "glibc", "glibc, warm heap": "warm"}
_LOOP = "per-item loop"


def made(text: str) -> str:
    """The page with every table made anew.

    Raises:
        ValueError: a table that nobody knows.
    """

    def block(found: re.Match[str]) -> str:
        if found[2] not in TABLES:
            raise ValueError(f"table: expected one of {', '.join(TABLES)}, got {found[2]!r}")
        return f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}"

    return _BLOCK.sub(block, text)


def rows() -> str:
    """Data and histories down, policies across."""
    found = latest(results.read("rows"), "data", "histories", "policy")
    lines = []
    for pair in markdown.groups(found, "data", "histories"):
        item, session = pair
        lines.append(
            [
                f"{item['data']}, {item['histories']}, {item['max_items']} items",
                f"{int(item['users']):,}",
                f"{float(item['text_rows']):,.1f}",
                *(f"{float(each['rows']):,.1f} ({float(each['ratio']):.2f}x)" for each in pair),
                f"`{session['policy']}`",
                " / ".join(f"{float(each['paper_ratio']):.2f}" for each in pair),
            ]
        )
    head = ["", "prompts", "text", "PFT-I (N=5)", "PFT-S", "of g", "the paper's counting, I / S"]
    return markdown.table(head, lines, found)


def compress(threads: str) -> str:
    """Dtype, mode and heap down, shapes across: our median, and how many times faster than the best peer."""
    found = [row for row in _compress(threads) if row["contestant"] == OURS and row["shape"] in SHAPES]

    def entry(row: Record) -> str:
        return f"{markdown.milliseconds(row)}, {markdown.times(row)}"

    return _cells(found, entry)


def ceiling() -> str:
    """As `compress`, our share of the ceiling's GB/s; where nothing but the batch's rows is moved."""
    shown = ("forward", "sparse", "accumulate")
    found = [row for row in _compress("1") if row["contestant"] == OURS and row["mode"] in shown]
    found = [row for row in found if row["shape"] in SHAPES]
    return _cells(found, lambda row: f"{float(row['gb_s']):.1f} GB/s, {float(row['ceiling_share']):.0%}")


def loop() -> str:
    """The released code's loop beside ours."""
    found = [row for row in _compress("1") if row["contestant"] in (OURS, _LOOP) and row["allocator"] == "glibc"]
    lines = []
    for cell in markdown.groups(found, "dtype", "mode", "shape"):
        times = {row["contestant"]: row for row in cell}
        if len(times) == 2:
            where = (
                f"{cell[0]['dtype']} {_MODES[cell[0]['mode']]}, {_SHAPE_NAMES.get(cell[0]['shape'], cell[0]['shape'])}"
            )
            both = times[OURS], times[_LOOP]
            lines.append(
                [where, *map(markdown.milliseconds, both), f"{markdown.quotient(times[_LOOP], times[OURS]):,.0f}x"]
            )
    kept = [row for row in found if row["mode"] == "forward" or row["shape"] == "loop"]
    return markdown.table(["", "ours", "loop", "quotient of the medians"], lines, kept)


def train() -> str:
    """Model and stage down: ours and padded and packed batches."""
    lines, found = [], []
    for cell in _train("stock"):
        ours, padded, packed = cell[:3]
        found += cell[:3]
        counts = f"{int(ours['rows']):,} of {int(padded['rows']):,}"
        trainers = map(markdown.step, (ours, padded, packed))
        lines.append([_MODELS[ours["model"]], ours["stage"], ours["users"], counts, *trainers, markdown.times(ours)])
    head = ["", "", "users", "rows of ours", "ours", "padded sdpa", "packed sdpa", "faster than the better"]
    return markdown.table(head, lines, found)


def train_loop() -> str:
    """The same beside the released code's loop."""
    lines, found = [], []
    for ours, peer in _train("loop"):
        found += [ours, peer]
        counts = f"{int(ours['rows']):,} of {int(peer['rows']):,}"
        steps = markdown.step(ours), markdown.step(peer)
        lines.append([_MODELS[ours["model"]], ours["stage"], ours["users"], counts, *steps, markdown.times(ours)])
    return markdown.table(["", "", "users", "rows of ours", "ours", "loop", "faster"], lines, found)


def train_parts() -> str:
    """What of our step is not the decoder's layers, as shares of the step."""
    names, lines, found = ("packing", "compress", "head and loss", "loss"), [], []
    for cell in _train("stock"):
        times = {row["contestant"]: row for row in cell}
        ours = times[OURS]
        found += cell
        shares = [
            f"{markdown.quotient(part, ours):.1%}" if (part := times.get(f"{PART}{name}")) else "" for name in names
        ]
        lines.append([_MODELS[ours["model"]], ours["stage"], markdown.seconds(ours), *shares])
    return markdown.table(["", "", "step", *names], lines, found)


def epoch() -> str:
    """Model and stage down, contestants under each other: the first is one prompt a target."""
    lines, found = [], []
    for cell in markdown.newest("epoch", "model", "stage"):
        found += cell
        for row in cell:
            fewer = float(cell[0]["epoch_rows"]) / float(row["epoch_rows"])
            lines.append(
                [
                    f"{_MODELS[row['model']]}, {row['stage']}",
                    row["contestant"],
                    f"{float(row['epoch_rows']) / 1e6:.1f} M ({fewer:.2f}x)",
                    f"{float(row['epoch_rows']) / float(row['floor_rows']):.2f}x",
                    f"{float(row['rows_per_s']):,.0f}",
                    f"{float(row['median_per_s']):,.1f}",
                    markdown.times(row),
                    f"{float(row['epoch_s']) / 3600:,.1f} h",
                    f"{float(row['peak_mb']) / 1e3:.1f} GB",
                ]
            )
    head = ["", "", "rows an epoch (fewer)", "of its floor", "rows/s", "targets/s", "faster", "an epoch, extrapolated"]
    return markdown.table([*head, "peak"], lines, found)


def segments() -> str:
    """Shape and mode down, contestants across."""
    lines, found = [], []
    for cell in markdown.newest("segments", "shape", "mode"):
        found += cell
        own = {row["contestant"]: row for row in cell}
        ours, peers = own[OURS], [own.get(name) for name in (GATHERED, DENSE)]
        shown = [
            f"{markdown.milliseconds(row)}, {float(row['peak_mb']):,.0f} MB" if row else "" for row in (ours, *peers)
        ]
        lines.append([f"{ours['shape']}", ours["mode"], ours["rows"], *shown, markdown.times(ours)])
    head = ["", "", "rows", "ours", GATHERED, DENSE, "faster than the better"]
    return markdown.table(head, lines, found)


def visits() -> str:
    """Policies and lengths down: a visit with the prompt of the last one kept, and without."""
    lines, found = [], []
    for cell in markdown.newest("visits", "policy", "items"):
        found += cell
        own = {row["contestant"]: row for row in cell}
        kept, fresh = own[KEPT], own[FRESH]
        both = markdown.milliseconds(kept), markdown.milliseconds(fresh)
        lines.append(
            [
                f"`{kept['policy']}`",
                kept["items"],
                kept["rows"],
                f"{float(kept['reused_share']):.1%} of {float(kept['old_share']):.1%}",
                *both,
                markdown.times(kept),
            ]
        )
    return markdown.table(
        ["", "items", "rows a prompt", "reused, of those not new", KEPT, FRESH, "faster"], lines, found
    )


def by_user() -> str:
    """Stage and arm down: all seeds together, and their difference to one prompt a target."""
    shown = ("HR@5", "HR@10", "HR@20", "NDCG@20")
    lines, found = [], []
    for cell in markdown.groups(results.read("by_user"), "stage", "arm"):
        arm = [row for row in cell if row["seed"] == POOLED] or cell  # a baseline has no seeds
        own = {row["metric"]: row for row in arm}
        found += cell
        runs = {row["seed"]: row for row in cell if row["seed"] != POOLED}.values()
        about = ["", "", ""]
        if own["HR@20"]["seed"] == POOLED:
            losses = [float(row["val_loss"]) for row in runs]
            seconds = f"{float(own['HR@20']['seconds']):,.0f} s"
            about = [own["HR@20"]["steps"], seconds, f"{min(losses):.3f} to {max(losses):.3f}"]
        last = own["HR@20"]
        difference = f"{float(last['difference']):+.4f} (p = {last['p_value']})" if last["difference"] else ""
        lines.append(
            [last["stage"], last["arm"], *about, *(markdown.interval(own[name]) for name in shown), difference]
        )
    head = ["", "", "steps", "time", "validation loss", *shown, f"HR@20 beside `{REFERENCE}`"]
    return markdown.table(head, lines, found)


def noise() -> str:
    """Targets of a step down, what they come in across."""
    found = results.read("noise")
    lines = []
    for cell in markdown.groups(found, "targets"):
        shown = [f"{row['noise']} ± {row['noise_error']} ({float(row['times_single']):.2f}x)" for row in cell]
        lines.append([cell[0]["targets"], *shown])
    kinds = [row["run_targets"] for row in found if row["targets"] == found[0]["targets"]]
    head = ["targets of a step", *("single prompts" if kind == "1" else f"{kind} of a user" for kind in kinds)]
    return markdown.table(head, lines, found)


def decode() -> str:
    """Setting down, searches across: milliseconds a user, and how many times faster than the peer."""
    found = [row for row in results.read("decode") if row["policy"] in _SETTINGS]
    found = latest(found, "policy", "contestant")
    peers = {"transformers generate": "transformers", "released protocol": "released protocol"}
    searches = ["beam", "beam, catalogue", "exact", "diverse", "diverse, catalogue"]
    lines = []
    for policy, name in _SETTINGS.items():
        own = {row["contestant"]: row for row in found if row["policy"] == policy}
        shown = [own.get(f"{OURS} {search}") for search in searches]
        ours = [f"{markdown.number(row)} ({markdown.times(row)})" if row else "" for row in shown]
        others = [markdown.number(row) if (row := own.get(peer)) else "" for peer in peers]
        lines.append([name, *ours, *others])
    head = ["", *(search.replace("catalogue", "titles") for search in searches), *peers.values()]
    return markdown.table(head, lines, found)


def decode_policies() -> str:
    """Ours under each policy, against text that is not cut."""
    compared = {"ours, 100 items": "100 items", "ours, long": "long users"}
    found = latest([row for row in results.read("decode") if row["policy"] in compared], "policy", "contestant")
    lines = [
        [
            f"{compared[row['policy']]}, {row['contestant'].removeprefix(f'{OURS}, ')}",
            markdown.number(row),
            f"{float(row['ratio']):.2f}x",
            f"{float(row['peak_mb']):,.0f} MB",
        ]
        for row in found
    ]
    return markdown.table(["", "ms a user", "faster than text that is not cut", "memory, all users"], lines, found)


def packing() -> str:
    """Histories a second: policies down, contestants across."""
    found = latest(results.read("packing"), "policy", "contestant")
    names = list(dict.fromkeys(row["contestant"] for row in found))
    lines = []
    for cell in markdown.groups(found, "policy"):
        lines.append([f"`{cell[0]['policy']}`", *(f"{int(row['median_per_s']):,} ({row['ratio']}x)" for row in cell)])
    return markdown.table(["", *names], lines, found)


def losses() -> str:
    """First and last validation loss of the runs that the figure shows."""
    found = [row for row in results.read("scratch_ml-100k") if row["split"] == "val"]
    lines = []
    for run in markdown.groups(found, "run"):
        first, last = run[0], run[-1]
        lines.append(
            [last["run"], last["step"], f"{float(last['tokens']) / 1e6:.1f} M", f"{float(last['seconds']):,.0f} s"]
            + [f"{float(row['loss']):.3f}" for row in (first, last)]
        )
    return markdown.table(["run", "steps", "rows read", "time", "loss before", "loss after"], lines, found)


TABLES: dict[str, Callable[[], str]] = {
    "rows": rows,
    "compress on one thread": lambda: compress("1"),
    "compress on two threads": lambda: compress("2"),
    "compress against the ceiling": ceiling,
    "compress against the loop": loop,
    "training": train,
    "training against the loop": train_loop,
    "parts of a training step": train_parts,
    "an epoch": epoch,
    "segment attention": segments,
    "quality by user": by_user,
    "gradient noise": noise,
    "decoding": decode,
    "decoding by policy": decode_policies,
    "users who return": visits,
    "packing": packing,
    "losses": losses,
    **gpu_page.TABLES,
    **gpu_tables.TABLES,
}
_MODELS = {
    "tiny, cut": "hidden 128, 4 layers, cut vocabulary",
    "tiny": "hidden 128, 4 layers",
    "100m": "hidden 768, 8 layers",
}
_SHAPE_NAMES = {"loop": "one user of 6 items"}
_SETTINGS = {
    "Text()": "100 items, text",
    "SessionPatches(5)": "100 items, PFT-S",
    "PFT-S, 100 steps": "the same, a model after 100 training steps",
    "text, 150 items": "long users, text of 150 items",
    "PFT-I, 350 items": "long users, PFT-I of 350 items",
    "PFT-S, all items": "long users, PFT-S of everything",
}


def _compress(threads: str) -> list[Record]:
    """Of the CPU that was measured last."""
    cell = ("allocator", "dtype", "mode", "shape", "contestant")
    recorded = results.read("compress")
    return latest([row for row in recorded if (row["cpu"], row["threads"]) == (recorded[-1]["cpu"], threads)], *cell)


def _cells(found: list[Record], entry: Callable[[Record], str]) -> str:
    lines = []
    for dtype in ("bf16", "fp32"):
        for mode in sorted(MODES, key=list(_MODES).index):
            for heap, name in _HEAPS.items():
                own = {r["shape"]: r for r in found if (r["dtype"], r["mode"], r["allocator"]) == (dtype, mode, heap)}
                if own:
                    entries = [entry(own[shape]) if shape in own else "" for shape in SHAPES]
                    lines.append([f"{dtype} {_MODES[mode]}", name, *entries])
    return markdown.table(["", "heap", *SHAPES], lines, found)


def _train(against: str) -> Iterable[list[Record]]:
    """The last cell of each model and stage, ours first."""
    recorded = [row for row in results.read("train") if row["against"] == against]
    found = latest(recorded, "model", "stage", "contestant")
    for model in _MODELS:
        for stage in ("text", "pft-i", "pft-s"):
            cell = [row for row in found if (row["model"], row["stage"]) == (model, stage)]
            newest = [row for row in cell if row["time"] == cell[0]["time"]]
            if newest:
                yield newest


def main() -> int:
    for page in PAGES:
        results.write(page, made(page.read_text(encoding="utf-8")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
