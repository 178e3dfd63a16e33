# SPDX-License-Identifier: Apache-2.0
"""What is counted and extrapolated of an epoch, without a clock."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import bench_epoch, harness, source
from benchmarks.bench_epoch import QUICK
from benchmarks.floor import floor
from benchmarks.gate import WrongAnswer
from patchrec_fast import ItemPatches, Packer, SessionPatches, Text
from patchrec_fast.data import Dataset
from patchrec_fast.layout import Grain
from patchrec_fast.layout.history import History
from patchrec_fast.ragged import to_offsets
from patchrec_fast.train import passes

POLICIES = [
    Text(),
    ItemPatches(0),
    ItemPatches(3),
    ItemPatches(2, step=4),
    SessionPatches(3),
    SessionPatches(3, anchor="oldest"),
]


@pytest.fixture(scope="module")
def data():
    """Users of few items, all of whose targets are learnt."""
    found = source.synthetic(3.94)
    lengths = np.array([4, 9, 45, 26])
    items = np.random.default_rng(0).choice(list(found.dataset.titles), lengths.sum())
    splits = {"train": np.stack([np.full(len(lengths), 3), lengths - 1], axis=1)}
    dataset = Dataset(items, to_offsets(lengths), found.dataset.titles, splits)
    return dataclasses.replace(found, dataset=dataset)


def rows_by_hand(packer, runs):
    """Prompt by prompt: a set of what a user's prompts show, and what only one prompt has."""
    catalogue, prompt = packer.catalogue, packer.prompt
    tokens = dict(zip(catalogue.item_ids.tolist(), np.diff(catalogue.offsets).tolist(), strict=True))
    flat, offsets = runs.sequences
    total = len(prompt.prefix)
    for user, first, last in zip(runs.user, runs.first, runs.last, strict=True):
        items = flat[offsets[user] : offsets[user + 1]].tolist()
        shown = {}  # what, where -> rows
        for target in range(first, last + 1):
            count = target
            while packer.max_items is not None and count >= packer.max_items + packer.step:
                count -= packer.step
            grain, session = packer.policy.assign(History.of(np.array([count])), np.random.default_rng(0))
            oldest, previous = target - count, None
            for i in range(count):
                place = oldest + i
                kind = (Grain(int(grain[i])), int(session[i]) if grain[i] == Grain.SESSION else place)
                if previous == kind:
                    continue
                previous = kind
                if kind[0] == Grain.SESSION:
                    run = [oldest + j for j in range(count) if (grain[j], session[j]) == (grain[i], session[i])]
                    shown["patch", *run] = 1
                elif kind[0] == Grain.ITEM:
                    shown["patch", place] = 1
                else:
                    shown["text", place] = tokens[items[place]]
                text = grain[i] == Grain.TEXT and grain[i - 1] == Grain.TEXT
                if i and (prompt.separators or text):
                    shown["separator", place] = 1
            total += len(prompt.suffix) + tokens[items[target]] + 1
        total += sum(shown.values())
    return total


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize(("max_items", "step"), [(None, 1), (7, 1), (7, 4)])
@pytest.mark.parametrize("separators", [True, False])
def test_the_floor_by_hand(separators, policy, max_items, step, data):
    prompt = SimpleNamespace(**vars(data.prompt) | {"separators": separators})
    packer = Packer(data.catalogue, prompt, policy, max_items, step=step)
    runs = passes(data.dataset, "train", 10**6)
    assert floor(packer, runs) == rows_by_hand(packer, runs)


def test_the_floor_of_text_is_reached(data):
    """Text of which nothing leaves is shared to the last row."""
    packer = Packer(data.catalogue, data.prompt, Text(), share=True)
    runs = passes(data.dataset, "train", 10**6)
    batch = packer.pack_targets(runs.take(np.arange(len(runs.user))).sequences, runs.first, runs.last)
    assert len(batch.position_ids) == floor(packer, runs)


@pytest.mark.parametrize("name", bench_epoch.STAGES)
def test_an_epoch_has_its_rows_and_targets(name, data):
    """No contestant is below its floor, and sharing more never reads more."""
    made = bench_epoch.epochs(data, name, QUICK)
    prompt, append_only, paper = made.values()
    assert prompt.targets == append_only.targets == paper.targets
    assert prompt.rows > paper.rows > paper.floor == prompt.floor
    assert append_only.rows > append_only.floor
    assert sum(map(prompt.learnt, range(len(prompt.batches)))) == prompt.targets


def test_rates_and_what_they_make_of_an_epoch(data):
    """Twice the targets in the same seconds are twice as fast, whatever the rows."""
    made = bench_epoch.epochs(data, "text", QUICK)
    names = list(made)
    learnt = {name: np.array([made[name].learnt(number) for number in range(3)]) for name in names}
    speed = {names[0]: 5.0, names[1]: 10.0, names[2]: 2.5}  # targets a second
    timings = [harness.Timing(name, learnt[name] / speed[name], 0) for name in names]
    found = bench_epoch.measured(timings, made, dict.fromkeys(names, 1e3))
    assert [row["ratio"] for row in found] == [1.0, 2.0, 0.5]
    for row in found:
        epoch = made[row["contestant"]]
        assert row["median_per_s"] == row["p20_per_s"] == row["p80_per_s"] == speed[row["contestant"]]
        assert row["epoch_s"] == round(epoch.targets / speed[row["contestant"]])
        assert (row["epoch_rows"], row["floor_rows"]) == (epoch.rows, epoch.floor)


def test_another_loss_is_not_timed(data, monkeypatch):
    pytest.importorskip("transformers")
    made = bench_epoch.epochs(data, "pft-s", QUICK)
    bench_epoch.check("pft-s", made)
    monkeypatch.setattr(bench_epoch, "_apart", lambda *_: 1.0)
    with pytest.raises(WrongAnswer, match="pft-s, by user, append-only, 16 targets: a loss of "):
        bench_epoch.check("pft-s", made)
