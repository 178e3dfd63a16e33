# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.page`: makes the tables of docs/benchmarks.md from the recorded results.

The page's prose is written by hand; what stands between `<!-- table: NAME -->` and `<!-- end -->` is made here, of the
last record of each cell.
"""

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from . import results
from .bench_train import PART
from .figures import latest
from .peers import MODES, OURS
from .shapes import SHAPES

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
Record = dict[str, str]

_BLOCK = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
_MODES = {
    "forward": "forward",
    "sparse": "forward + backward, sparse",
    "accumulate": "forward + backward into an existing gradient",
    "dense": "forward + backward, dense",
    "dense+sgd": "the same + `p.add_(grad)`",
}
_XEON = "Intel(R) Xeon(R) Processor @ 2.50GHz (family 6, model 85)"
_HEAPS = {"glibc": "glibc", "glibc, warm heap": "warm"}
_LOOP = "per-item loop"


def made(text: str) -> str:
    """The page with every table made anew.

    Raises:
        ValueError: a table that nobody knows.
    """

    def block(found: re.Match[str]) -> str:
        if found[2] not in TABLES:
            raise ValueError(f"{PAGE}: table: expected one of {', '.join(TABLES)}, got {found[2]!r}")
        return f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}"

    return _BLOCK.sub(block, text)


def rows() -> str:
    """Data and histories down, policies across."""
    found = latest(results.read("rows"), "data", "histories", "policy")
    lines = []
    for pair in _groups(found, "data", "histories"):
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
    return _table(head, lines, found)


def compress(threads: str) -> str:
    """Dtype, mode and heap down, shapes across: our median, and how many times faster than the best peer."""
    found = [row for row in _compress(threads) if row["contestant"] == OURS and row["shape"] in SHAPES]

    def entry(row: Record) -> str:
        return f"{_milliseconds(row)}, {_times(row)}"

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
    for cell in _groups(found, "dtype", "mode", "shape"):
        times = {row["contestant"]: row for row in cell}
        if len(times) == 2:
            where = (
                f"{cell[0]['dtype']} {_MODES[cell[0]['mode']]}, {_SHAPE_NAMES.get(cell[0]['shape'], cell[0]['shape'])}"
            )
            both = times[OURS], times[_LOOP]
            lines.append([where, *map(_milliseconds, both), f"{_quotient(times[_LOOP], times[OURS]):,.0f}x"])
    kept = [row for row in found if row["mode"] == "forward" or row["shape"] == "loop"]
    return _table(["", "ours", "loop", "quotient of the medians"], lines, kept)


def train() -> str:
    """Model and stage down: ours and padded and packed batches."""
    lines, found = [], []
    for cell in _train("stock"):
        ours, padded, packed = cell[:3]
        found += cell[:3]
        counts = f"{int(ours['rows']):,} of {int(padded['rows']):,}"
        trainers = map(_step, (ours, padded, packed))
        lines.append([_MODELS[ours["model"]], ours["stage"], ours["users"], counts, *trainers, _times(ours)])
    head = ["", "", "users", "rows of ours", "ours", "padded sdpa", "packed sdpa", "faster than the better"]
    return _table(head, lines, found)


def train_loop() -> str:
    """The same beside the released code's loop."""
    lines, found = [], []
    for ours, peer in _train("loop"):
        found += [ours, peer]
        counts = f"{int(ours['rows']):,} of {int(peer['rows']):,}"
        steps = _step(ours), _step(peer)
        lines.append([_MODELS[ours["model"]], ours["stage"], ours["users"], counts, *steps, _times(ours)])
    return _table(["", "", "users", "rows of ours", "ours", "loop", "faster"], lines, found)


def train_parts() -> str:
    """What of our step is not the decoder's layers, as shares of the step."""
    names, lines, found = ("packing", "compress", "head and loss", "loss"), [], []
    for cell in _train("stock"):
        times = {row["contestant"]: row for row in cell}
        ours = times[OURS]
        found += cell
        shares = [f"{_quotient(part, ours):.1%}" if (part := times.get(f"{PART}{name}")) else "" for name in names]
        lines.append([_MODELS[ours["model"]], ours["stage"], _seconds(ours), *shares])
    return _table(["", "", "step", *names], lines, found)


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
        ours = [f"{_number(row)} ({_times(row)})" if row else "" for row in shown]
        others = [_number(row) if (row := own.get(peer)) else "" for peer in peers]
        lines.append([name, *ours, *others])
    head = ["", *(search.replace("catalogue", "titles") for search in searches), *peers.values()]
    return _table(head, lines, found)


def decode_policies() -> str:
    """Ours under each policy, against text that is not cut."""
    compared = {"ours, 100 items": "100 items", "ours, long": "long users"}
    found = latest([row for row in results.read("decode") if row["policy"] in compared], "policy", "contestant")
    lines = [
        [
            f"{compared[row['policy']]}, {row['contestant'].removeprefix(f'{OURS}, ')}",
            _number(row),
            f"{float(row['ratio']):.2f}x",
            f"{float(row['peak_mb']):,.0f} MB",
        ]
        for row in found
    ]
    return _table(["", "ms a user", "faster than text that is not cut", "memory, all users"], lines, found)


def packing() -> str:
    """Histories a second: policies down, contestants across."""
    found = latest(results.read("packing"), "policy", "contestant")
    names = list(dict.fromkeys(row["contestant"] for row in found))
    lines = []
    for cell in _groups(found, "policy"):
        lines.append([f"`{cell[0]['policy']}`", *(f"{int(row['median_per_s']):,} ({row['ratio']}x)" for row in cell)])
    return _table(["", *names], lines, found)


def losses() -> str:
    """First and last validation loss of the runs that the figure shows."""
    found = [row for row in results.read("scratch_ml-100k") if row["split"] == "val"]
    lines = []
    for run in _groups(found, "run"):
        first, last = run[0], run[-1]
        lines.append(
            [last["run"], last["step"], f"{float(last['tokens']) / 1e6:.1f} M", f"{float(last['seconds']):,.0f} s"]
            + [f"{float(row['loss']):.3f}" for row in (first, last)]
        )
    return _table(["run", "steps", "rows read", "time", "loss before", "loss after"], lines, found)


TABLES: dict[str, Callable[[], str]] = {
    "rows": rows,
    "compress on one thread": lambda: compress("1"),
    "compress on two threads": lambda: compress("2"),
    "compress against the ceiling": ceiling,
    "compress against the loop": loop,
    "training": train,
    "training against the loop": train_loop,
    "parts of a training step": train_parts,
    "decoding": decode,
    "decoding by policy": decode_policies,
    "packing": packing,
    "losses": losses,
}
_MODELS = {"tiny": "hidden 128, 4 layers", "100m": "hidden 768, 8 layers"}
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
    cell = ("allocator", "dtype", "mode", "shape", "contestant")
    recorded = results.read("compress")
    return latest([row for row in recorded if (row["cpu"], row["threads"]) == (_XEON, threads)], *cell)


def _cells(found: list[Record], entry: Callable[[Record], str]) -> str:
    lines = []
    for dtype in ("bf16", "fp32"):
        for mode in sorted(MODES, key=list(_MODES).index):
            for heap, name in _HEAPS.items():
                own = {r["shape"]: r for r in found if (r["dtype"], r["mode"], r["allocator"]) == (dtype, mode, heap)}
                if own:
                    entries = [entry(own[shape]) if shape in own else "" for shape in SHAPES]
                    lines.append([f"{dtype} {_MODES[mode]}", name, *entries])
    return _table(["", "heap", *SHAPES], lines, found)


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


def _groups(found: list[Record], *columns: str) -> list[list[Record]]:
    """In the order of each group's first row."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for row in found:
        groups.setdefault(tuple(row[column] for column in columns), []).append(row)
    return list(groups.values())


def _quotient(one: Record, other: Record) -> float:
    return float(one["median_ms"]) / float(other["median_ms"])


def _number(row: Record) -> str:
    value = float(row["median_ms"])
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _milliseconds(row: Record) -> str:
    return f"{_number(row)} ms"


def _seconds(row: Record) -> str:
    value = float(row["median_ms"]) / 1e3
    return f"{value:,.1f} s" if value >= 10 else f"{value:.2f} s"


def _step(row: Record) -> str:
    return f"{_seconds(row)}, {float(row['peak_mb']) / 1e3:.1f} GB"


def _times(row: Record) -> str:
    """Bold where we lose."""
    value = float(row["ratio"])
    text = f"{value:,.0f}x" if value >= 100 else f"{value:.1f}x" if value >= 20 else f"{value:.2f}x"
    return f"**{text}**" if value < 1 else text


def _table(head: list[str], lines: list[list[str]], found: list[Record]) -> str:
    """Markdown, and under it the records' origins."""
    shown = ["|".join(["", *(f" {entry} " for entry in line), ""]) for line in (head, *lines)]
    shown.insert(1, "|" + "---|" * len(head))
    return "\n".join([*shown, "", _origin(found)])


def _origin(found: list[Record]) -> str:
    commits = ", ".join(dict.fromkeys(row["commit"] for row in found))
    places = dict.fromkeys(", ".join(row[key] for key in ("cpu", "machine") if key in row) for row in found)
    versions = ", ".join(dict.fromkeys(f"torch {row['torch']}" for row in found if "torch" in row))
    where = "; ".join(filter(None, [*places, versions]))
    return f"*{where + '; ' if where else ''}commits {commits}.*"


def main() -> int:
    text = PAGE.read_text(encoding="utf-8")
    results.write(PAGE, made(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
