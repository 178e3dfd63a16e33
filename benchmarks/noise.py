# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.noise --data DIR --tokenizer DIR --out DIR`: the noise of a step's gradient

The tiny recipe of ML-100K, text, after a few steps. A step's gradient is that of so many targets, which come as single
prompts of random users or in runs of one user's. Its noise is the mean of |g - G|^2 / |G|^2 over steps, G the gradient
of the whole training split (McCandlish et al. 2018, "An Empirical Model of Large-Batch Training"). It goes to
results/noise.csv.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchrec_fast import Packer, attach, data
from patchrec_fast.train import Passes, passes

from . import checkout, machine, results
from .by_user import ARMS, DATA, losses, opened, recipe, trained
from .floor import EVERYONE

STAGE, STEPS, TARGETS = "text", 100, (64, 512)
RUNS = {"1": 1, "16": 16, "64": 64, "all": EVERYONE}  # targets of a run
STEPS_EACH = 32


def cut(runs: Passes, targets: int, rng: np.random.Generator) -> list[Passes]:
    """Steps: the runs in random order, one after another, cut wherever a step has exactly so many targets.

    So each target is as likely in a step as any other, and the mean over all steps is that of the split. What is left
    over at the end is no step.
    """
    order = rng.permutation(len(runs.user))
    user, first, last = runs.user[order], runs.first[order], runs.last[order]
    ends = (last - first + 1).cumsum()
    made = []
    for begin in range(0, int(ends[-1]) - targets + 1, targets):
        end = begin + targets
        some = slice(int(np.searchsorted(ends, begin, side="right")), int(np.searchsorted(ends, end)) + 1)
        own_first, own_last, own_ends = first[some].copy(), last[some].copy(), ends[some]
        own_first[0] = own_last[0] - (own_ends[0] - begin) + 1
        own_last[-1] -= own_ends[-1] - end
        made.append(Passes(runs.sequences, user[some], own_first, own_last))
    return made


def gradient(model: Any, packer: Packer, runs: Passes) -> Tensor:
    """(P,) float64: of the mean loss a token, all parameters one after another; the model is attached."""
    model.zero_grad()
    total = 0
    for loss, tokens in losses(model, packer, runs):
        (loss * tokens).backward()
        total += tokens
    return torch.cat([weight.grad.flatten().double() for weight in model.parameters()]) / total


def noise(gradients: list[Tensor], whole: Tensor) -> tuple[float, float]:
    """The mean of |g - G|^2 / |G|^2, and its standard error."""
    values = np.array([float((one - whole).square().sum() / whole.square().sum()) for one in gradients])
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.noise", description=__doc__)
    add = parser.add_argument
    add("--data", required=True, help=f"folder with {DATA}")
    add("--tokenizer", required=True, help="folder of the Llama-3 tokenizer")
    add("--out", required=True, help="folder that keeps the model")
    add("--steps", type=int, default=STEPS_EACH, help="of each kind (default: %(default)s)")
    add("--limit", type=int, help="to try it: so many runs in place of the whole split, nothing recorded")
    options = parser.parse_args()
    if not options.limit and not checkout.may_record("benchmarks.noise"):
        return 2
    dataset = data.load(Path(options.data) / DATA)
    own = recipe(STAGE, ARMS["prompt, append-only"], 0).override({"steps": STEPS, "epochs": 1})
    trained(own, STAGE, options, Path(options.out))
    model, packer = opened(Path(options.out), dataset)
    attach(model.eval())

    facts = {key: value for key, value in machine.facts().items() if key != "load"}
    whole = None
    made: list[results.Row] = []
    for targets in TARGETS:
        single = 0.0
        for name, most in RUNS.items():
            runs = passes(dataset, "train", most)
            rng = np.random.default_rng((targets, most))
            if whole is None:
                whole = gradient(model, packer, _few(passes(dataset, "train", 64), options.limit))
            steps = cut(runs, targets, rng)
            chosen = [steps[place] for place in rng.choice(len(steps), options.steps, replace=False)]
            mean, spread = noise([gradient(model, packer, one) for one in chosen], whole)
            single = single or mean
            users = float(np.mean([len(np.unique(one.user)) for one in chosen]))
            row: results.Row = {
                **facts,
                "data": DATA,
                "stage": STAGE,
                "trained_steps": STEPS,
                "targets": targets,
                "run_targets": name,
                "users": round(users, 1),
                "steps": options.steps,
                "noise": float(f"{mean:.4g}"),
                "noise_error": float(f"{spread:.2g}"),
                "times_single": round(mean / single, 3),
            }
            print({key: row[key] for key in list(row)[-6:]}, flush=True)
            made.append(row)
    if not options.limit:
        print(results.replace("noise", made))
    return 0


def _few(runs: Passes, limit: int | None) -> Passes:
    return runs if limit is None else runs.take(np.arange(len(runs.user))[:limit])


if __name__ == "__main__":
    sys.exit(main())
