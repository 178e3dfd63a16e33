# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.curves NAME RUN...`: losses of training runs -> results/NAME.csv and figures/NAME.png.

A RUN is a folder that `patchrec-fast train` wrote; its folder name is the name of its line. Without runs, the figure
is drawn again from the results.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

from patchrec_fast.train import curves

from . import checkout, machine, results
from .figures import FOLDER, plain, save

# Okabe and Ito's colours, as in figures.py; for the runs in their order.
COLOURS = ("#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")


def collect(run: Path) -> list[results.Row]:
    """A row a point of one run, with what made it."""
    made = json.loads((run / "run.json").read_text())
    recipe, versions = made["recipe"], made["versions"]
    facts = machine.facts()
    origin = {name: facts[name] for name in ("time", "machine", "cpu", "commit")}
    about = {
        "run": run.name,
        "stage": made["stage"],
        "from": Path(made["model"]).name,
        "data": Path(made["data"]).name,
        **{name: recipe[name] for name in ("hidden", "layers", "max_items", "batch", "learning_rate", "seed")},
        **{name: versions[name] for name in ("torch", "transformers")},
    }
    return [{**about, **point._asdict(), **origin} for point in curves.read(run / "curves.csv")]


def draw(rows: list[dict[str, str]]) -> Any:
    """Loss against the rows that a model has read: the runs on short histories, and those that go on from them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    lengths = sorted({int(row["max_items"]) for row in rows})
    colours = dict(zip(dict.fromkeys(row["run"] for row in rows), itertools.cycle(COLOURS), strict=False))
    panels = figure.subplots(1, len(lengths), squeeze=False)[0]
    for axes, length in zip(panels, lengths, strict=True):
        here = [row for row in rows if int(row["max_items"]) == length]
        for name in dict.fromkeys(row["run"] for row in here):
            for split, style in (
                ("train", {"linewidth": 0.8, "alpha": 0.5}),
                ("val", {"marker": "o", "markersize": 3}),
            ):
                points = [row for row in here if (row["run"], row["split"]) == (name, split)]
                read = [float(row["tokens"]) / 1e6 for row in points]
                label = f"{name} (from {points[0]['from']})" if split == "val" else None
                axes.plot(read, [float(row["loss"]) for row in points], color=colours[name], label=label, **style)
        axes.set_title(f"histories of up to {length} items", fontsize=10, loc="left")
        axes.set_xlabel("rows read, million")
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.legend(frameon=False, fontsize=8)
        plain(axes)
    panels[0].set_ylabel("nats a supervised token")
    last = rows[-1]
    shape = f"a Llama of {last['layers']} layers, {last['hidden']} wide, made from scratch"
    figure.suptitle(f"{last['data']}: {shape}; thick: validation, thin: training", fontsize=10)
    return figure


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.curves", description=__doc__)
    parser.add_argument("name")
    parser.add_argument("runs", nargs="*", type=Path)
    options = parser.parse_args()
    if options.runs:
        if not checkout.may_record("benchmarks.curves"):
            return 2
        rows = [row for run in options.runs for row in collect(run)]
        results.replace(options.name, rows)
    recorded = results.read(options.name)
    if not recorded:
        print(f"no results/{options.name}.csv yet: name the folders of the runs", file=sys.stderr)
        return 2
    save(draw(recorded), FOLDER / f"{options.name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
