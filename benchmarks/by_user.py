# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.by_user --data DIR --tokenizer DIR --out DIR`: what training by user does to quality

The tiny recipe of ML-100K, every arm from the same weights a seed, for as many epochs (or twice as many): trained, its
loss measured on the validation split and its metrics on the test split. It keeps each cell (stage, arm, seed) in --out
as soon as it is done, goes on there when it was killed, and writes results/by_user.csv at the end: of the cells that
were asked for, or with --done of all those in --out.
"""

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer

from patchrec_fast import Catalogue, Packer, Recommender, attach, data
from patchrec_fast.data import Dataset, Samples
from patchrec_fast.evaluation import Popularity, Report, evaluate
from patchrec_fast.evaluation.report import table
from patchrec_fast.evaluation.samples import users_of
from patchrec_fast.layout.config import PromptConfig
from patchrec_fast.layout.histories import checked
from patchrec_fast.models.opening import open_trained
from patchrec_fast.recommend import Ranker
from patchrec_fast.train import Passes, passes, recipes
from patchrec_fast.train.recipes import Recipe
from patchrec_fast.train.run import train
from patchrec_fast.train.start import some

from . import checkout, machine, results

DATA, STAGES, SEEDS, KS = "ml-100k", ("text", "pft-i", "pft-s"), (0, 1, 2), (5, 10, 20)
# From 23 to 37 items, 30 in the mean, which is how many the arm without has.
APPEND_ONLY = {"max_items": 23, "items_step": 15, "patch_step": 5, "anchor": "oldest"}
POOLED = "all"  # in place of a seed: the samples of every seed together
_ORIGIN = ("time", "machine", "cpu", "torch", "commit", "threads")


class Arm(NamedTuple):
    """A way to train: `targets` of a pass, 1 for one prompt a target; so many times the recipe's epochs."""

    targets: int
    append_only: bool = True
    longer: int = 1


REFERENCE = "prompt"
ARMS = {
    REFERENCE: Arm(1, append_only=False),
    "prompt, append-only": Arm(1),
    "user, 4": Arm(4),
    "user, 16": Arm(16),
    "user, 64": Arm(64),
    "user, 16, twice as long": Arm(16, longer=2),
}


def recipe(stage: str, arm: Arm, seed: int) -> Recipe:
    """The tiny recipe, with what the arm changes."""
    changes: dict[str, Any] = {"seed": seed, "by": "prompt"}
    if arm.targets > 1:
        changes |= {"by": "user", "targets_per_pass": arm.targets}
    tiny = recipes.load("tiny", stage)
    changes["epochs"] = arm.longer * tiny.epochs
    return tiny.override(changes | (APPEND_ONLY if arm.append_only else {}))


def trained(own: Recipe, stage: str, options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """What `train` returns; a run that was killed goes on."""
    begun = (out / "run.json").is_file()
    source = Path(options.data) / DATA
    return train(own, stage, model="tiny", data=source, out=out, tokenizer=options.tokenizer, resume=begun)


def opened(folder: Path, dataset: Dataset) -> tuple[Any, Packer]:
    """A trained model, and the packer of its prompts, which shares rows."""
    model, tokenizer = open_trained(folder)
    packer = PromptConfig.load(folder).packer(dataset.titles, tokenizer)
    packer.share = True
    return model, packer


def losses(model: Any, packer: Packer, runs: Passes, at_once: int = 64) -> Iterator[tuple[Tensor, int]]:
    """The mean loss a token of every few runs, with the number of its tokens; the model is attached."""
    targets = runs.last - runs.first + 1
    part = (targets.cumsum() - 1) // at_once
    for places in np.split(np.arange(len(part)), np.flatnonzero(np.diff(part)) + 1):
        some_runs = runs.take(places)
        batch = packer.pack_targets(some_runs.sequences, some_runs.first, some_runs.last)
        assert batch.targets is not None
        yield model(**batch.model_inputs()).loss, len(batch.targets)


def mean_loss(model: Any, packer: Packer, runs: Passes) -> float:
    """Nats a supervised token over all targets, however they were read in training."""
    attachment = attach(model.eval())
    with torch.no_grad():
        found = [(float(loss) * tokens, tokens) for loss, tokens in losses(model, packer, runs)]
    attachment.detach()
    total, tokens = map(sum, zip(*found, strict=True))
    return total / tokens


def run_cell(
    stage: str, arm: str, seed: int, options: argparse.Namespace, dataset: Dataset
) -> tuple[dict[str, Any], Report] | None:
    """One cell, or what is kept of it; None where nothing is and nothing shall be run."""
    folder = Path(options.out) / stage / arm.replace(", ", "-").replace(" ", "-") / str(seed)
    kept, path = folder / "cell.json", folder / "test" / "report.json"
    if kept.is_file():
        return json.loads(kept.read_text()), Report.load(path)
    if options.done:
        return None
    own = recipe(stage, ARMS[arm], seed)
    if options.limit:
        own = own.override({"limit_train": options.limit, "epochs": 1})
    result = trained(own, stage, options, folder / "model")
    model, packer = opened(folder / "model", dataset)
    loss = mean_loss(model, packer, passes(dataset, "val", 64))
    samples = dataset.split("test", max_items=None)
    users = Samples(samples.histories, users_of(*checked(*samples)).astype(np.int32))
    samples, users = some(samples, options.limit), some(users, options.limit)
    report = evaluate(Recommender(model, packer), samples, KS, out=path.parent, users=users.targets)
    cell = {
        **{key: value for key, value in machine.facts().items() if key in _ORIGIN},
        "data": DATA,
        "stage": stage,
        "arm": arm,
        "seed": seed,
        "batch": own.batch,
        "steps": result["steps"],
        "samples": result["samples"],
        "rows": result["tokens"],
        "seconds": result["seconds"],
        "val_loss": round(loss, 5),
    }
    results.write(kept, json.dumps(cell, indent=1))
    return cell, report


def rows(cells: list[tuple[dict[str, Any], Report]], dataset: Dataset, popularity: Ranker) -> list[results.Row]:
    """A row a metric: of each cell; of each stage and arm, all seeds together, with the difference to the reference's;
    and of popularity."""
    found = []
    for pair in cells:
        found += _metrics(*pair)
    by_arm = itertools.groupby(cells, lambda pair: (pair[0]["stage"], pair[0]["arm"]))
    groups = {key: list(group) for key, group in by_arm}
    together = {key: _pooled([report for _, report in group]) for key, group in groups.items()}
    for (stage, arm), group in groups.items():
        mean = {key: float(np.mean([cell[key] for cell, _ in group])) for key in ("seconds", "val_loss")}
        found += _metrics(
            {**group[0][0], "seed": POOLED, **{key: round(value, 5) for key, value in mean.items()}},
            together[stage, arm],
            together.get((stage, REFERENCE)) if arm != REFERENCE else None,
        )
    last, report = cells[-1]
    blank = dict.fromkeys(("seed", "batch", "steps", "samples", "rows", "seconds", "val_loss"), "")
    samples = dataset.split("test", max_items=None)
    samples = some(samples, len(report.ranks))
    asked: dict[str, Any] = {"by": "rank", "batch_size": 256, "progress": False, "users": np.asarray(report.users)}
    for name, unseen in (("popularity", False), ("popularity, unseen", True)):
        other = evaluate(popularity, samples, KS, name=name, exclude_seen=unseen, **asked)
        found += _metrics({**last, "stage": "", "arm": name, **blank}, other)
    return found


def _metrics(cell: dict[str, Any], report: Report, reference: Report | None = None) -> list[results.Row]:
    compared = {} if reference is None else report.compare(reference)
    made: list[results.Row] = []
    for name, (value, low, high) in report.metrics().items():
        row = {**cell, "metric": name, "value": round(value, 5), "low": round(low, 5), "high": round(high, 5)}
        row |= dict.fromkeys(("difference", "difference_low", "difference_high", "p_value"), "")
        if name in compared:
            (value, low, high), p = compared[name]
            row |= {"difference": round(value, 5), "difference_low": round(low, 5), "difference_high": round(high, 5)}
            row["p_value"] = round(p, 4)
        made.append(row)
    return made


def _pooled(reports: list[Report]) -> Report:
    """The samples of several runs; a user is drawn with all of theirs."""
    ranks, users = (list(itertools.chain(*(getattr(one, name) for one in reports))) for name in ("ranks", "users"))
    return dataclasses.replace(reports[0], ranks=ranks, users=users)


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.by_user", description=__doc__)
    add = parser.add_argument
    add("--data", required=True, help=f"folder with {DATA}")
    add("--tokenizer", required=True, help="folder of the Llama-3 tokenizer")
    add("--out", required=True, help="folder that keeps what is done")
    add("--stages", nargs="+", choices=STAGES, default=STAGES)
    add("--arms", nargs="+", choices=tuple(ARMS), default=tuple(ARMS), metavar="ARM", help=f"of {', '.join(ARMS)}")
    add("--seeds", nargs="+", type=int, default=SEEDS)
    add("--done", action="store_true", help="of what was asked for, the cells that are there; none is run")
    add("--limit", type=int, help="to try it: so many training and test samples, one epoch, nothing recorded")
    options = parser.parse_args()
    if not options.limit and not checkout.may_record("benchmarks.by_user"):
        return 2
    dataset = data.load(Path(options.data) / DATA)
    asked = itertools.product(options.stages, options.arms, options.seeds)
    cells = [cell for each in asked if (cell := run_cell(*each, options, dataset)) is not None]
    if not cells:
        parser.error(f"--done: no such cell in {options.out}")
    named = [dataclasses.replace(report, name=f"{c['stage']}, {c['arm']}, seed {c['seed']}") for c, report in cells]
    print(table(named))
    titles = Catalogue.from_titles(dataset.titles, AutoTokenizer.from_pretrained(options.tokenizer))
    made = rows(cells, dataset, Popularity(dataset, titles))
    if not options.limit:
        print(results.replace("by_user", made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
