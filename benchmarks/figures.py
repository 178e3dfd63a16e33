# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.figures`: draws benchmarks/figures/ from the recorded results."""

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import results
from .cells import CEILING
from .peers import MODES, OURS, PEERS

FOLDER = Path(__file__).parent / "figures"

# Okabe and Ito's colours, told apart by every kind of colour vision; ours stands out.
COLOURS = {
    OURS: "#D55E00",
    "embedding_bag": "#0072B2",
    "embedding_bag sparse": "#56B4E9",
    "embedding_bag twice": "#009E73",
    "index_add": "#CC79A7",
    "segment_reduce": "#E69F00",
    "per-item loop": "#999999",
}
_NAMES = (OURS, *PEERS)
TITLES = {
    "forward": "forward",
    "dense": "forward + backward,\nfresh dense gradient",
    "dense+sgd": "the same and\none step on it",
    "sparse": "forward + backward,\nsparse gradient",
    "accumulate": "forward + backward\ninto an existing gradient",
}


def plain(axes: Any) -> None:
    """No box, light horizontal lines, nothing in front of the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def save(figure: Any, path: Path) -> None:
    """A PNG, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150, format="png")
    results.write(path, buffer.getvalue())
    print(path)


def time_bars(axes: Any, rows: Sequence[dict[str, Any]], title: str) -> None:
    """Horizontal bars of one cell's medians, fastest on top."""
    rows = sorted((row for row in rows if row["contestant"] != CEILING), key=_median, reverse=True)
    names = [row["contestant"] for row in rows]
    times = [_median(row) for row in rows]
    axes.barh(names, times, color=[COLOURS[name] for name in names], height=0.7)
    for place, (row, ms) in enumerate(zip(rows, times, strict=True)):
        weight = "bold" if row["contestant"] == OURS else "normal"
        shown = f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.3g} ms"
        axes.text(ms + max(times) / 100, place, shown, va="center", fontsize=8, fontweight=weight)
    axes.set_xlim(0, max(times) * 1.15)
    axes.set_title(title, fontsize=9, loc="left")
    axes.tick_params(labelsize=8)
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    plain(axes)


def _median(row: dict[str, Any]) -> float:
    return float(row["median_ms"])


def latest(rows: list[dict[str, str]], *key: str) -> list[dict[str, str]]:
    """The last row recorded for each value of the key."""
    return list({tuple(row[name] for name in key): row for row in rows}.values())


def _fullest(rows: list[dict[str, str]], state: Sequence[str]) -> list[dict[str, str]]:
    """The rows of one state of a machine: of those with the most cells, the one recorded last."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in state), []).append(row)

    def order(group: list[dict[str, str]]) -> tuple[int, str]:
        cells = {(row["shape"], row["dtype"], row["mode"]) for row in group}
        return len(cells), max(row["time"] for row in group)

    return max(groups.values(), key=order)


def compress(rows: list[dict[str, str]]) -> Any:
    """How many times faster than the best peer: shapes across, modes beside each other."""
    from matplotlib.figure import Figure

    state = ("cpu", "threads", "allocator")
    rows = latest(rows, *state, "shape", "dtype", "mode", "contestant")
    rows = _fullest(rows, state)
    last = rows[-1]
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    figure = Figure(figsize=(14, 3.4 * len(dtypes) + 0.9), layout="constrained")
    grid = figure.subplots(len(dtypes), len(MODES), sharey=True, squeeze=False)
    for axes_row, dtype in zip(grid, dtypes, strict=True):
        for axes, mode in zip(axes_row, MODES, strict=True):
            cell = [row for row in rows if (row["dtype"], row["mode"]) == (dtype, mode)]
            cell = [row for row in cell if row["shape"] != "loop"]
            _ratio_bars(axes, cell, f"{dtype}, {TITLES[mode]}")
        axes_row[0].set_ylabel("times faster than the best peer")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    seen = dict(zip(labels, handles, strict=True))
    for axes in grid.flat:
        seen |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(seen.values(), seen.keys(), loc="outside lower center", ncols=7, frameon=False)
    figure.suptitle(f"compress on {last['cpu']}, {last['threads']} thread(s), {last['allocator']}")
    return figure


def _ratio_bars(axes: Any, rows: list[dict[str, str]], title: str) -> None:
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    names = [name for name in _NAMES if any(row["contestant"] == name for row in rows)]
    width = 0.8 / max(len(names), 1)
    for place, name in enumerate(names):
        found = {row["shape"]: float(row["ratio"]) for row in rows if row["contestant"] == name}
        at = [shapes.index(shape) + (place - (len(names) - 1) / 2) * width for shape in found]
        axes.bar(at, found.values(), width, color=COLOURS[name], label=name)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xticks(range(len(shapes)), shapes)
    axes.set_title(title, fontsize=9, loc="left")
    axes.grid(axis="y", alpha=0.25, linewidth=0.6)
    plain(axes)


def packing(rows: list[dict[str, str]]) -> Any:
    """Histories a second on one core."""
    from matplotlib.figure import Figure

    rows = latest(rows, "policy", "contestant")
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    names = list(dict.fromkeys(row["contestant"] for row in rows))
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    for place, name in enumerate(names):
        speed = [float(r["median_per_s"]) for r in rows if r["contestant"] == name]
        at = [i + (place - (len(names) - 1) / 2) * 0.27 for i in range(len(policies))]
        bars = axes.bar(at, speed, 0.26, label=name, color=("#D55E00", "#F0A97A", "#999999")[place])
        axes.bar_label(bars, [f"{value:,.0f}" for value in speed], fontsize=8)
    axes.set_xticks(range(len(policies)), policies)
    axes.set_ylabel("histories of 100 items a second")
    axes.set_title(f"packing on one core, {rows[-1]['data']}", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="upper center", ncols=3, bbox_to_anchor=(0.5, -0.1))
    plain(axes)
    return figure


def main() -> int:
    drawn = 0
    for name, draw in (("compress", compress), ("packing", packing)):
        if rows := results.read(name):
            save(draw(rows), FOLDER / f"{name}.png")
            drawn += 1
    if not drawn:
        print("no results yet: run `pytest --benchmark --record` first", file=sys.stderr)
    return 0 if drawn else 2


if __name__ == "__main__":
    sys.exit(main())
