# SPDX-License-Identifier: Apache-2.0
"""Decoding on one core: ours against transformers' cached beam search and the released protocol, and policies of ours.

Nothing is timed before its answers are the peer's, or, where no peer has the same question (probabilities among title
tokens alone), brute force's; `exact` over the whole vocabulary is compared with that in the tests. The model is random:
4 layers of width 256 under the tokenizer's whole vocabulary. It knows no title, which is the worst case for `exact`,
without a bound to prune by; so one cell is of a model that has been trained for two minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from patchrec_fast import Packer, Recommender, SessionPatches, Text, attach
from patchrec_fast.evaluation.profile import SETTINGS, Setting, long_histories
from patchrec_fast.layout import Policy
from patchrec_fast.ragged import Ragged
from patchrec_fast.recommend import Recommendations

from . import harness, machine
from .conftest import Recorder, Settings
from .peers import decode_generate, decode_released
from .results import Row
from .source import Source

CATALOGUE = "catalogue"  # the cheap normalisation
USERS, LONG_USERS, ITEMS, BEAMS = 4, 2, 100, 20
POLICIES: dict[str, Policy] = {"Text()": Text(), "SessionPatches(5)": SessionPatches(5)}
LONG = SETTINGS[:3]  # the last, whole histories as text, takes the peers minutes a user: 20 prompts of 6,500 rows
OURS = "patchrec_fast"
Decode = Callable[[Any, Packer, list[list[int]], int], decode_generate.Answers]
PEERS: dict[str, tuple[str, Decode]] = {
    "beam": ("transformers generate", decode_generate.decode),
    "diverse": ("released protocol", decode_released.decode),
}


def tiny(vocabulary: int, quick: bool = False) -> Any:
    """A Llama of 4 layers and width 256; with --quick 2 and 32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    width, layers = (32, 2) if quick else (256, 4)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.3,  # no two titles within rounding of each other
    )
    return LlamaForCausalLM(config).eval()


def taught(model: Any, packer: Packer, source: Source, steps: int) -> Any:
    """The model after so many steps of eight users, trained in place."""
    histories, targets = source.dataset.split("train", ITEMS)
    order = np.random.default_rng(0).permutation(len(targets))[: 8 * steps].reshape(steps, 8)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    handle = attach(model.train())
    for chosen in order:
        batch = packer.pack(Ragged(*histories).take(chosen), targets[chosen])
        model(**batch.model_inputs()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    handle.detach()
    return model.eval()


def histories_of(source: Source, users: int) -> list[list[int]]:
    """The newest items of users who have enough."""
    dataset = source.dataset
    long = np.flatnonzero(np.diff(dataset.offsets) > ITEMS)[:users]
    return [dataset.items[end - ITEMS - 1 : end - 1].tolist() for end in dataset.offsets[long + 1]]


def check(mine: Recommendations, found: decode_generate.Answers) -> None:
    """Raises AssertionError where the peer has other titles or scores."""
    items, scores = found
    assert mine.items.tolist() == items, "other titles than the peer's"
    assert np.allclose(mine.scores, scores, atol=1e-3), "other scores than the peer's"


def check_catalogue(mine: Recommendations, rec: Recommender, histories: list[list[int]]) -> None:
    """Raises AssertionError where log-probabilities among title tokens are not those of every title's table."""
    table = rec.scores(histories, normalize=CATALOGUE)
    place = rec.packer.catalogue.index(mine.items.reshape(-1)).reshape(mine.items.shape)
    expected = np.take_along_axis(table, place, axis=1)
    assert np.allclose(mine.log_probs, expected, atol=1e-3), "other log-probabilities than brute force"


def first_calls(calls: dict[str, harness.Call]) -> tuple[dict[str, Any], dict[str, float]]:
    """What each gives, and the megabytes that it takes."""
    answers: dict[str, Any] = {}
    peaks = {}
    for name, call in calls.items():

        def answer(name: str = name, call: harness.Call = call) -> None:
            answers[name] = call(0)

        peaks[name] = machine.peak_megabytes(answer)
    return answers, peaks


def rows(timings: list[harness.Timing], users: int, peaks: dict[str, float]) -> list[Row]:
    """Milliseconds a user, times faster than the peer, the last of the timings, and the peak of all users together."""
    return [
        {
            "contestant": timing.name,
            "median_ms": round(timing.milliseconds() / users, 2),
            "rounds": len(timing.seconds),
            "contended": timing.contended,
            "ratio": round(timing.times_faster_than(timings[-1]), 2),
            "peak_mb": round(peaks[timing.name]),
        }
        for timing in timings
    ]


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def contest(rec: Recommender, histories: list[list[int]], method: Any, settings: Settings) -> list[Row]:
    """Checks and times a method and its peer on one core; beside "beam", also "exact"."""
    name, peer = PEERS[method]
    calls: dict[str, harness.Call] = {
        f"{OURS} {method}": lambda round_: rec.recommend(histories, BEAMS, method, beams=BEAMS),
        f"{OURS} {method}, {CATALOGUE}": lambda round_: rec.recommend(
            histories, BEAMS, method, normalize=CATALOGUE, beams=BEAMS
        ),
    }
    if method == "beam":
        calls[f"{OURS} exact"] = lambda round_: rec.recommend(histories, BEAMS, "exact")
    calls[name] = lambda round_: peer(rec.model, rec.packer, histories, BEAMS)
    with one_thread():
        answers, peaks = first_calls(calls)
        check(answers[f"{OURS} {method}"], answers[name])
        check_catalogue(answers[f"{OURS} {method}, {CATALOGUE}"], rec, histories)
        least = 1 if method == "diverse" else 3  # the released protocol takes minutes
        return rows(harness.measure(calls, **{"min_rounds": least, **settings.rounds}), len(histories), peaks)


@pytest.mark.parametrize("method", PEERS)
@pytest.mark.parametrize("policy", POLICIES)
def test_decoding(policy: str, method: Any, settings: Settings, record: Recorder, benchmark: BenchmarkFixture) -> None:
    source = settings.source("ml-1m")
    histories = histories_of(source, 1 if settings.quick else USERS)
    packer = Packer(source.catalogue, source.prompt, POLICIES[policy], ITEMS)
    rec = Recommender(tiny(source.prompt.num_embeddings, settings.quick), packer)
    measured = contest(rec, histories, method, settings)
    record("decode", measured, {"data": source.label, "users": len(histories), "beams": BEAMS, "policy": policy})
    benchmark.group = "decoding"
    benchmark.pedantic(rec.recommend, args=(histories, BEAMS, method), rounds=2)


@pytest.mark.parametrize("method", PEERS)
@pytest.mark.parametrize("setting", LONG, ids=lambda setting: setting.name)
def test_long_users(
    setting: Setting, method: Any, settings: Settings, record: Recorder, benchmark: BenchmarkFixture
) -> None:
    """The paper's Figure 8, on the longest histories there are; "policy" is its setting."""
    source = settings.source("ml-1m")
    histories = [
        history.tolist() for history in long_histories(source.dataset, limit=1 if settings.quick else LONG_USERS)
    ]
    packer = Packer(source.catalogue, source.prompt, setting.policy, setting.max_items)
    rec = Recommender(tiny(source.prompt.num_embeddings, settings.quick), packer)
    measured = contest(rec, histories, method, settings)
    record("decode", measured, {"data": source.label, "users": len(histories), "beams": BEAMS, "policy": setting.name})
    benchmark.group = "decoding for long users"
    benchmark.pedantic(rec.recommend, args=(histories, BEAMS, method), rounds=2)


def test_trained(settings: Settings, record: Recorder, benchmark: BenchmarkFixture) -> None:
    """Beam and exact search where the model has learnt what a title is."""
    source = settings.source("ml-1m")
    histories = histories_of(source, 1 if settings.quick else USERS)
    packer = Packer(source.catalogue, source.prompt, POLICIES["SessionPatches(5)"], ITEMS)
    steps = 3 if settings.quick else 100
    model = taught(tiny(source.prompt.num_embeddings, settings.quick), packer, source, steps)
    rec = Recommender(model, packer)
    measured = contest(rec, histories, "beam", settings)
    policy = f"PFT-S, {steps} steps"
    record("decode", measured, {"data": source.label, "users": len(histories), "beams": BEAMS, "policy": policy})
    benchmark.group = "decoding after training"
    benchmark.pedantic(rec.recommend, args=(histories, BEAMS, "exact"), rounds=2)


@pytest.mark.parametrize("length", ["100 items", "long"])
def test_policies(length: str, settings: Settings, record: Recorder, benchmark: BenchmarkFixture) -> None:
    """Ours under each policy, against ours on text that is not cut."""
    source = settings.source("ml-1m")
    users = 1 if settings.quick else LONG_USERS if length == "long" else USERS
    if length == "long":
        histories = [history.tolist() for history in long_histories(source.dataset, limit=users)]
        compared = SETTINGS
    else:
        histories = histories_of(source, users)
        compared = tuple(Setting(name, policy, ITEMS) for name, policy in reversed(POLICIES.items()))
    model = tiny(source.prompt.num_embeddings, settings.quick)
    calls: dict[str, harness.Call] = {}
    for setting in compared:
        rec = Recommender(model, Packer(source.catalogue, source.prompt, setting.policy, setting.max_items))
        calls[f"{OURS}, {setting.name}"] = lambda round_, rec=rec: rec.recommend(histories, BEAMS, beams=BEAMS)  # type: ignore[misc]
    with one_thread():
        peaks = first_calls(calls)[1]
        measured = rows(harness.measure(calls, **settings.rounds), users, peaks)
    record("decode", measured, {"data": source.label, "users": users, "beams": BEAMS, "policy": f"ours, {length}"})
    benchmark.group = "decoding by policy"
    benchmark.pedantic(rec.recommend, args=(histories, BEAMS), rounds=1)
