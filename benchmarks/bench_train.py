# SPDX-License-Identifier: Apache-2.0
"""Forward and backward of a training step: ours against the paper's loop and stock transformers.

16 users of ML-1M (of some cells fewer), 100 items each, a vocabulary of 128,259, tied embeddings, float32 on the CPU.
No optimizer: it costs everyone the same. `loop` cells have one round, for the loop takes minutes; of ours the median of
three calls stands against it.
"""

import copy
import statistics
import time
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from patchrec_fast import ItemPatches, PackedBatch, Packer, SessionPatches, Text, attach, compress
from patchrec_fast.layout import Policy
from patchrec_fast.ops.cross_entropy import linear_cross_entropy

from . import harness, machine
from .conftest import Recorder, Settings
from .peers import OURS
from .peers.training import LOOP, TRAINERS, Trainer
from .results import Row
from .shapes import BATCHES, VOCABULARY
from .source import Source


class Model(NamedTuple):
    """A Llama's sizes."""

    hidden: int
    layers: int
    heads: int

    def build(self, vocabulary: int = VOCABULARY) -> Any:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=self.hidden,
            intermediate_size=4 * self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            tie_word_embeddings=True,
            initializer_range=0.1,  # losses far from log V, so that a wrong one shows
        )
        return LlamaForCausalLM(config).train()


MODELS = {"tiny": Model(128, 4, 2), "100m": Model(768, 8, 12)}
GATE = Model(16, 2, 2)
POLICIES: dict[str, Policy] = {"text": Text(), "pft-i": ItemPatches(5), "pft-s": SessionPatches(5)}
USERS, ITEMS = 16, 100
FEWER_USERS = {
    ("100m", "text", "stock"): 8,  # of 16 the peers take 15.5 GB at hidden 128 already
    ("100m", "text", "loop"): 2,  # of 16 the loop takes more than 22 GB
    ("100m", "pft-i", "loop"): 2,  # for 16 a single call takes longer than all others together
}
PART = "part: "  # of our own step, before its name
TOLERANCE = 1e-4  # of float32 sums over thousands of rows, relative to the largest gradient


def parts(model: Any, packer: Packer, users: tuple[list[Any], list[Any]]) -> dict[str, harness.Call]:
    """The pieces of our step that are not the decoder's layers, each alone: its forward and its backward."""
    batch = packer.pack(*users)
    table = model.get_input_embeddings().weight
    hidden = torch.randn(len(batch.position_ids), table.shape[1])
    inputs = batch.model_inputs()
    kept = hidden[inputs["supervised_rows"]].requires_grad_()
    targets = inputs["labels"][0, inputs["supervised_rows"] + 1]

    def pool(round_: int) -> object:
        out = compress(batch.ids, batch.offsets, table)
        return torch.autograd.grad(out, table, hidden)

    def head_and_loss(round_: int) -> object:
        return torch.autograd.grad(linear_cross_entropy(kept, table, targets).mean(), (kept, table))

    return {
        f"{PART}packing": lambda round_: packer.pack(*users).model_inputs(),
        f"{PART}compress": pool,
        f"{PART}head and loss": head_and_loss,
    }


def long_users(source: Source, users: int, count: int) -> list[tuple[list[Any], list[Any]]]:
    """`count` times the histories and the targets of so many of the longest users."""
    dataset = source.dataset
    order = (dataset.offsets[:-1] - dataset.offsets[1:]).argsort(kind="stable").tolist()
    made = []
    for number in range(count):
        chosen = order[number::count][:users]
        whole = [dataset.items[dataset.offsets[u] : dataset.offsets[u + 1]] for u in chosen]
        made.append(([items[:-1] for items in whole], [items[-1] for items in whole]))
    return made


def batches(source: Source, policy: Policy, users: int, count: int, **options: bool) -> list[PackedBatch]:
    """Their newest 100 items, packed; `options` for the packer."""
    packer = Packer(source.catalogue, source.prompt, policy, ITEMS, **options)
    return [packer.pack(*each) for each in long_users(source, users, count)]


def calls(
    model: Any, packed: list[PackedBatch], shared: list[PackedBatch], trainers: list[Trainer]
) -> dict[str, harness.Call]:
    """A step of each trainer; ours on a copy of the model, and on the batches that share the prefix."""
    found: dict[str, harness.Call] = {}
    for trainer in trainers:
        own = copy.deepcopy(model) if trainer.attached else model
        if trainer.attached:
            attach(own)
        prepared = [trainer.prepare(batch, model.dtype) for batch in (shared if trainer.attached else packed)]

        def call(round_: int, trainer: Trainer = trainer, own: Any = own, prepared: list[Any] = prepared) -> Any:
            at = round_ % len(packed)
            own.zero_grad(set_to_none=True)
            loss = trainer.loss(own, packed[at], prepared[at])
            loss.backward()
            return own, loss.detach()

        found[trainer.name] = call
    return found


@cache
def check(source: Source, policy: Policy) -> None:
    """Losses and gradients of all trainers agree on a small model; else no time is taken."""
    model = GATE.build()
    expected: tuple[torch.Tensor, dict[str, torch.Tensor]] | None = None
    both = (batches(source, policy, 2, 1, share=share) for share in (False, True))
    for name, call in calls(model, *both, list(TRAINERS)).items():
        own, loss = call(0)
        found = {key: weight.grad.clone() for key, weight in own.named_parameters()}
        if expected is None:
            expected = loss, found
        torch.testing.assert_close(loss, expected[0], rtol=TOLERANCE, atol=0, msg=f"{name}: another loss")
        for key, gradient in found.items():
            allowed = TOLERANCE * float(expected[1][key].abs().max())
            difference = float((gradient - expected[1][key]).abs().max())
            assert difference <= allowed, f"{name}: gradient of {key} is off by {difference}, allowed {allowed}"


@pytest.mark.parametrize("against", ["stock", "loop"])
@pytest.mark.parametrize("stage", POLICIES)
@pytest.mark.parametrize("model", MODELS)
def test_train(
    model: str, stage: str, against: str, settings: Settings, record: Recorder, benchmark: BenchmarkFixture
) -> None:
    if settings.quick and model != "tiny":
        pytest.skip("--quick: the tiny model only")
    source = settings.source("ml-1m")
    policy = POLICIES[stage]
    check(source, policy)
    trainers = [each for each in TRAINERS if each.attached or (each.name == LOOP) == (against == "loop")]
    users = 2 if settings.quick else FEWER_USERS.get((model, stage, against), USERS)
    packed, shared = (batches(source, policy, users, BATCHES, share=share) for share in (False, True))
    built = MODELS[model].build()
    timed = calls(built, packed, shared, trainers)
    if against == "stock":
        packer = Packer(source.catalogue, source.prompt, policy, ITEMS, share=True)
        timed |= parts(built, packer, long_users(source, users, 1)[0])
    peaks: dict[str, float] = {}
    if against == "loop":
        timed[OURS](0)
        names = {call: name for name, call in timed.items()}
        timings = harness.measure(timed, min_rounds=1, max_rounds=1, sampler=_once(names, peaks))
    else:
        for name, call in timed.items():  # which is also everyone's first call
            peaks[name] = machine.peak_megabytes(lambda call=call: call(0))  # type: ignore[misc]
        rounds = settings.rounds if settings.quick else {"min_rounds": 3, "max_rounds": 9}
        timings = harness.measure(timed, budget=60.0, **rounds)
    ratios = harness.ratios(timings, [each.name for each in trainers if not each.attached])
    rows = [_row(timing, ratios, peaks) for timing in timings]
    for row in rows:
        row["rows"] = _rows(shared if row["contestant"] == OURS else packed)
    cell = {"data": source.label, "model": model, "stage": stage, "users": users, "against": against, "rows": 0}
    record("train", rows, cell)
    for row in rows:
        benchmark.extra_info[row["contestant"]] = row
    benchmark.group = f"{OURS} alone"
    benchmark.pedantic(timed[OURS], args=(0,), rounds=1)


def _rows(batches: list[PackedBatch]) -> int:
    """Of a batch, in the mean."""
    return sum(len(batch.position_ids) for batch in batches) // len(batches)


def _once(names: dict[harness.Call, str], peaks: dict[str, float]) -> Callable[[harness.Call, int], tuple[float, bool]]:
    """A sampler for those who take minutes: the call that is timed also gives the peak, and only ours is repeated."""

    def sample(call: harness.Call, round_: int) -> tuple[float, bool]:
        seconds = []

        def clocked() -> None:
            began = time.perf_counter()
            call(round_)
            seconds.append(time.perf_counter() - began)

        peaks[names[call]] = machine.peak_megabytes(clocked)
        for _ in range(2 if names[call] == OURS else 0):
            clocked()
        return statistics.median(seconds), False

    return sample


def _row(timing: harness.Timing, ratios: dict[str, float], peaks: dict[str, float]) -> Row:
    """A part of our step is no contestant: its ratio is NaN."""
    ratio = float("nan") if timing.name.startswith(PART) else ratios[timing.name]
    return {
        "contestant": timing.name,
        "median_ms": round(timing.milliseconds(), 1),
        "p20_ms": round(timing.milliseconds(0.2), 1),
        "p80_ms": round(timing.milliseconds(0.8), 1),
        "rounds": len(timing.seconds),
        "contended": timing.contended,
        "ratio": round(ratio, 2),
        "peak_mb": round(peaks[timing.name]),
    }
