# SPDX-License-Identifier: Apache-2.0
"""An epoch of ML-1M: one prompt a target, against a user's targets read together.

Every contestant learns the same targets, in micro-batches filled to the same number of rows. Its rows of an epoch are
counted, all micro-batches packed as training packs them. Timed are whole steps: packing, forward, backward and AdamW's,
one micro-batch a step, the next one each round; seconds of an epoch are extrapolated from these.
"""

import dataclasses
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from patchrec_fast import Packer, attach
from patchrec_fast.data import Dataset, Samples
from patchrec_fast.train import MicroBatches, Passes, Stage, passes, stage

from . import harness, machine
from .bench_train import GATE, MODELS
from .conftest import Recorder, Settings
from .floor import EVERYONE, floor
from .gate import WrongAnswer
from .results import Row
from .source import Source

STAGES = ("text", "pft-i", "pft-s")
CUT = "tiny, cut"  # the vocabulary, to the titles' tokens and the prompt's, as of a model made from scratch
ITEMS, ITEMS_STEP = 100, 50
APPEND_ONLY: dict[str, Any] = {"patch_step": 5, "anchor": "oldest"}
PROMPT = "one prompt a target"
TOLERANCE = 1e-5  # of a loss in float32, the mean of a few hundred


class Size(NamedTuple):
    """Of micro-batches and passes."""

    rows: int  # of a micro-batch; no pass has more
    targets: int  # of a pass
    text: int  # of a pass in the paper's layout, as many as `rows` surely hold, at most `targets`; and so the next two
    pft_i: int
    pft_s: int


FULL, QUICK = Size(8192, 64, text=11, pft_i=24, pft_s=64), Size(2048, 16, text=2, pft_i=4, pft_s=16)
QUICK_USERS = 10


class Epoch(NamedTuple):
    """One contestant's training: what a step reads, and what all of them read."""

    batches: MicroBatches
    targets: int
    rows: int
    floor: int  # of rows, in the same layout

    def learnt(self, number: int) -> int:
        """Targets of a micro-batch."""
        samples, places = self.batches.samples, self.batches.describe(number).samples
        return int((samples.last - samples.first + 1)[places].sum()) if isinstance(samples, Passes) else len(places)


def packer(source: Source, own: Stage, step: int) -> Packer:
    return Packer(source.catalogue, source.prompt, own.final, ITEMS, share=True, step=step)


def small(dataset: Dataset, users: int) -> Dataset:
    """Its first users."""
    splits = {name: places[:users] for name, places in dataset.splits.items()}
    offsets = dataset.offsets[: users + 1]
    ids = dataset.user_ids.only(range(users))
    return dataclasses.replace(
        dataset, items=dataset.items[: offsets[-1]], offsets=offsets, splits=splits, user_ids=ids
    )


def epochs(source: Source, name: str, size: Size) -> dict[str, Epoch]:
    """By contestant: planned, packed and counted.

    Raises:
        WrongAnswer: contestants learn other numbers of targets.
    """
    paper, append_only = stage(name), stage(name, **APPEND_ONLY)
    dataset, few = source.dataset, getattr(size, name.replace("-", "_"))
    contestants: dict[str, tuple[Samples | Passes, Stage, int]] = {
        PROMPT: (dataset.split("train", ITEMS), paper, 1),
        f"by user, append-only, {size.targets} targets": (
            passes(dataset, "train", size.targets),
            append_only,
            ITEMS_STEP,
        ),
        f"by user, {few} targets": (passes(dataset, "train", few), paper, 1),
    }
    users = passes(dataset, "train", EVERYONE)
    floors = {step: floor(packer(source, own, step), users) for own, step in ((paper, 1), (append_only, ITEMS_STEP))}
    made = {}
    for contestant, (samples, own, step) in contestants.items():
        batches = MicroBatches(samples, packer(source, own, step), own, rows=size.rows)
        rows = sum(batches[number]["position_ids"].numel() for number in range(len(batches)))
        epoch = Epoch(batches, 0, rows, floors[step])
        made[contestant] = epoch._replace(targets=sum(map(epoch.learnt, range(len(batches)))))
    if len({epoch.targets for epoch in made.values()}) > 1:
        raise WrongAnswer(f"targets of an epoch differ: { {key: epoch.targets for key, epoch in made.items()} }")
    return made


def check(name: str, made: dict[str, Epoch]) -> None:
    """No time is taken of another loss: that of each contestant's first micro-batch by user, against its prompts'."""
    model = GATE.build()
    attach(model)
    for contestant, epoch in made.items():
        if contestant == PROMPT:
            continue
        batches, own = epoch.batches, epoch.batches.packer
        assert isinstance(batches.samples, Passes)
        one = batches.samples.take(batches.describe(0).samples[:2])
        with torch.no_grad():
            together = model(**own.pack_targets(one.sequences, one.first, one.last).model_inputs()).loss.item()
            apart = _apart(model, own, one)
        if not abs(together - apart) <= TOLERANCE * apart:
            raise WrongAnswer(f"{name}, {contestant}: a loss of {together}, of its prompts one by one {apart}")


def _apart(model: Any, own: Packer, runs: Passes) -> float:
    """The mean loss a token, each prompt read alone."""
    loss = tokens = 0.0
    for user, (first, last) in enumerate(zip(runs.first.tolist(), runs.last.tolist(), strict=True)):
        for place in range(first, last + 1):
            single = runs.take(np.array([user]))
            batch = own.pack_targets(single.sequences, place, place)
            assert batch.targets is not None
            loss += model(**batch.model_inputs()).loss.item() * len(batch.targets)
            tokens += len(batch.targets)
    return loss / tokens


def steps(model: Any, made: dict[str, Epoch]) -> dict[str, Callable[[int], object]]:
    """A training step of each contestant, all on one model and one optimizer."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step(batches: MicroBatches, number: int) -> object:
        optimizer.zero_grad(set_to_none=True)
        loss = model(**batches[number % len(batches)]).loss
        loss.backward()
        optimizer.step()
        return loss.detach()

    return {name: lambda round_, own=epoch.batches: step(own, round_) for name, epoch in made.items()}  # type: ignore[misc]


def measured(timings: list[harness.Timing], made: dict[str, Epoch], peaks: dict[str, float]) -> list[Row]:
    """A row a contestant: rates over its rounds, and what they make of an epoch."""
    found: list[Row] = []
    each = []
    for timing in timings:
        epoch = made[timing.name]
        numbers = [round_ % len(epoch.batches) for round_ in range(len(timing.seconds))]
        targets = np.array([epoch.learnt(number) for number in numbers])
        rows = np.array([epoch.batches[number]["position_ids"].numel() for number in numbers])
        each.append(harness.Timing(timing.name, timing.seconds / targets, timing.contended))
        low, median, high = np.quantile(targets / timing.seconds, [0.2, 0.5, 0.8]).tolist()
        found.append(
            {
                "contestant": timing.name,
                "median_per_s": round(median, 2),
                "p20_per_s": round(low, 2),
                "p80_per_s": round(high, 2),
                "rounds": len(timing.seconds),
                "contended": timing.contended,
                "rows_per_s": round(float(np.median(rows / timing.seconds)), 1),
                "peak_mb": round(peaks[timing.name]),
                "epoch_targets": epoch.targets,
                "epoch_rows": epoch.rows,
                "floor_rows": epoch.floor,
                "epoch_s": round(epoch.targets / median),
            }
        )
    ratios = harness.ratios(each, [PROMPT])
    return [{**row, "ratio": round(ratios[str(row["contestant"])], 2)} for row in found]


@pytest.mark.parametrize("model", [CUT, *MODELS])
@pytest.mark.parametrize("name", STAGES)
def test_epoch(name: str, model: str, settings: Settings, record: Recorder, benchmark: BenchmarkFixture) -> None:
    if settings.quick and model == "100m":
        pytest.skip("--quick: the tiny model only")
    source, size = settings.source("ml-1m"), FULL
    if model == CUT:
        source = _cut(source)
    if settings.quick:
        source, size = _quick(source), QUICK
    made = _epochs(source, name, size)
    check(name, made)
    built = MODELS[model.removesuffix(", cut")].build(source.prompt.num_embeddings)
    attach(built)
    calls = steps(built, made)
    calls[PROMPT](0)  # makes the optimizer's state, which is nobody's peak
    peaks = {key: machine.peak_megabytes(lambda call=call: call(0)) for key, call in calls.items()}  # type: ignore[misc]
    rounds = settings.rounds or {"min_rounds": 5, "max_rounds": 15, "budget": 120.0}
    rows = measured(harness.measure(calls, **rounds), made, peaks)
    record("epoch", rows, {"data": source.label, "model": model, "stage": name, "rows": size.rows})
    for row in rows:
        benchmark.extra_info[str(row["contestant"])] = row
    benchmark.group = "training by user alone"
    benchmark.pedantic(list(calls.values())[1], args=(0,), rounds=1)


_epochs = lru_cache(maxsize=1)(epochs)  # a stage's models come one after another, and samples are large


_cut = cache(Source.cut)


@cache
def _quick(source: Source) -> Source:
    dataset = small(source.dataset, QUICK_USERS)
    return dataclasses.replace(source, label=f"{source.label}, {len(dataset)} users", dataset=dataset)
