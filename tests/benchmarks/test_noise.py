# SPDX-License-Identifier: Apache-2.0
"""Steps of equal numbers of targets, and the noise of their gradients; what an arm of the study is."""

import numpy as np
import pytest
import torch

from benchmarks import by_user, noise, source
from benchmarks.bench_train import GATE
from patchrec_fast import ItemPatches, Packer, attach
from patchrec_fast.evaluation import Report
from patchrec_fast.train import Passes, passes


def targets_of(runs):
    """(user, place) of each target."""
    pairs = zip(runs.user.tolist(), runs.first.tolist(), runs.last.tolist(), strict=True)
    return [(user, place) for user, first, last in pairs for place in range(first, last + 1)]


@pytest.mark.parametrize("seed", range(20))
def test_steps_have_exactly_so_many_targets(seed):
    rng = np.random.default_rng(seed)
    first = rng.integers(1, 50, 30)
    runs = Passes((np.arange(9), np.array([0, 9])), np.arange(30), first, first + rng.integers(0, 40, 30))
    everything = targets_of(runs)
    for targets in (1, 7, 64):
        steps = noise.cut(runs, targets, np.random.default_rng(seed))
        dealt = [target for step in steps for target in targets_of(step)]
        assert [len(targets_of(step)) for step in steps] == [targets] * (len(everything) // targets)
        assert len(set(dealt)) == len(dealt)
        assert set(dealt) <= set(everything)
        for step in steps:  # a run is cut, never mixed
            assert len(set(step.user.tolist())) == len(step.user)
            assert (step.first <= step.last).all()


def test_steps_come_in_random_order():
    runs = Passes((np.arange(9), np.array([0, 9])), np.arange(40), np.ones(40, int), np.full(40, 4))
    orders = {tuple(np.concatenate([s.user for s in noise.cut(runs, 8, np.random.default_rng(n))])) for n in range(5)}
    assert len(orders) == 5


@pytest.fixture(scope="module")
def work():
    pytest.importorskip("transformers")
    found, model = source.synthetic(3.94), GATE.build()
    return model, Packer(found.catalogue, found.prompt, ItemPatches(3, 2), 8, share=True, step=4), found.dataset


def test_the_gradient_is_that_of_all_tokens(work):
    """However the targets are grouped; and it is autograd's of one batch of all of them."""
    model, packer, dataset = work
    runs = passes(dataset, "train", 64).take(np.array([0, 1]))
    runs = runs._replace(last=runs.first + 20)
    attachment = attach(model)
    batch = packer.pack_targets(runs.sequences, runs.first, runs.last)
    loss = model(**batch.model_inputs()).loss
    loss.backward()
    expected = torch.cat([weight.grad.flatten().double() for weight in model.parameters()])
    singles = [runs._replace(first=runs.first + n, last=runs.first + n) for n in range(21)]
    alone = Passes(
        runs.sequences, *(np.concatenate([getattr(one, name) for one in singles]) for name in runs._fields[1:])
    )
    for grouped in (runs, alone):
        found = noise.gradient(model, packer, grouped)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))
    attachment.detach()
    assert by_user.mean_loss(model, packer, alone) == pytest.approx(loss.item(), rel=1e-5)


def test_noise_by_hand():
    whole = torch.tensor([3.0, 4.0])  # of norm 5
    mean, error = noise.noise([whole, whole + torch.tensor([0.0, 5.0]), whole - torch.tensor([10.0, 0.0])], whole)
    assert mean == pytest.approx((0 + 1 + 4) / 3)
    assert error == pytest.approx(np.std([0, 1, 4], ddof=1) / 3**0.5)


def report(ranks):
    return Report("r", (5, 10), ranks, [0, 0, 1, 2], "same", 0, 0)


def test_seeds_are_pooled_and_compared_with_the_reference(monkeypatch):
    cell = dict.fromkeys(("data", "batch", "steps", "samples", "rows"), 1)
    ranks = {("prompt", 0): [1, -1, 1, -1], ("prompt", 1): [1, 1, -1, -1], ("user, 16", 0): [1, 1, 1, 7]}
    ranks["user, 16", 1] = [-1, 1, 1, 1]
    cells = [
        (
            {**cell, "stage": "text", "arm": arm, "seed": seed, "seconds": 2.0 + seed, "val_loss": seed + 0.5},
            report(found),
        )
        for (arm, seed), found in ranks.items()
    ]
    popular = {False: [1, 2, 3, 4], True: [1, 1, 1, 1]}
    monkeypatch.setattr(by_user, "evaluate", lambda *_, exclude_seen, **__: report(popular[exclude_seen]))
    monkeypatch.setattr(by_user, "some", lambda samples, limit: samples)
    rows = by_user.rows(cells, source.synthetic(3.94).dataset, None)
    pooled = {row["arm"]: row for row in rows if (row["seed"], row["metric"]) == ("all", "HR@5")}
    assert pooled["prompt"]["value"] == 4 / 8
    assert pooled["user, 16"]["value"] == 6 / 8
    assert pooled["user, 16"]["difference"] == 2 / 8
    assert pooled["prompt"]["difference"] == ""
    assert (pooled["prompt"]["seconds"], pooled["prompt"]["val_loss"]) == (2.5, 1.0)
    names = [row["arm"] for row in rows if row["stage"] == ""]
    assert names == ["popularity"] * 4 + ["popularity, unseen"] * 4
    assert len({tuple(row) for row in rows}) == 1  # the same columns


def test_an_arm_changes_what_it_says():
    """The recipe's own keys are as in the tiny recipe."""
    made = {name: by_user.recipe("pft-s", arm, 1) for name, arm in by_user.ARMS.items()}
    assert {name: (own.by, own.targets_per_pass) for name, own in made.items()} == {
        "prompt": ("prompt", None),
        "prompt, append-only": ("prompt", None),
        "user, 4": ("user", 4),
        "user, 16": ("user", 16),
        "user, 64": ("user", 64),
        "user, 16, twice as long": ("user", 16),
    }
    assert {name: own.epochs for name, own in made.items() if own.epochs != 2} == {"user, 16, twice as long": 4}
    assert {name for name, own in made.items() if own.anchor == "newest"} == {"prompt"}
