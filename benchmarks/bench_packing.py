# SPDX-License-Identifier: Apache-2.0
"""Packing on one core: ours, ours with the GPU's plan, and the plain loops that are its oracle."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from patchrec_fast import ItemPatches, Packer, SessionPatches, Text
from patchrec_fast.layout import Policy
from patchrec_fast.ragged import counting

from . import harness
from .conftest import Recorder, Settings
from .results import Row
from .source import Source

USERS, ITEMS = 256, 100
POLICIES: dict[str, tuple[Policy, Callable[[ModuleType, list[int]], list]]] = {
    "Text()": (Text(), lambda brute, history: brute.text(history)),
    "ItemPatches(5)": (ItemPatches(5), lambda brute, history: brute.item_patches(history, 5)),
    "SessionPatches(5)": (
        SessionPatches(5),
        lambda brute, history: brute.session_patches(history, 5),
    ),
}


def _oracle() -> ModuleType:
    """tests/layout/brute.py, by its path: `tests` is not a package."""
    path = Path(__file__).parents[1] / "tests" / "layout" / "brute.py"
    spec = importlib.util.spec_from_file_location("brute", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["brute"] = module  # its dataclasses look themselves up here
    spec.loader.exec_module(module)
    return module


def contestants(source: Source, name: str, users: int) -> dict[str, harness.Call]:
    """Everyone packs the same users' newest 100 items, with targets, from their favourite input."""
    policy, units = POLICIES[name]
    dataset, catalogue, prompt = source.dataset, source.catalogue, source.prompt
    long = np.flatnonzero(np.diff(dataset.offsets) > ITEMS)[:users]
    ends = dataset.offsets[long + 1]
    flat = dataset.items[counting(ends - ITEMS - 1, np.full(len(long), ITEMS))]
    offsets = ITEMS * np.arange(len(long) + 1)
    targets = dataset.items[ends - 1]

    packer = Packer(catalogue, prompt, policy, ITEMS)
    planner = Packer(catalogue, prompt, policy, ITEMS, plan=True)
    brute = _oracle()
    starts = catalogue.offsets.tolist()
    titles = {
        item: catalogue.token_ids[starts[i] : starts[i + 1]].tolist()
        for i, item in enumerate(catalogue.item_ids.tolist())
    }
    around = prompt.prefix.tolist(), prompt.suffix.tolist(), prompt.separator, prompt.end_of_turn
    frame = brute.Frame(titles, *around)
    lists, answers = flat.reshape(-1, ITEMS).tolist(), targets.tolist()

    def loops(round_: int) -> object:
        pairs = zip(lists, answers, strict=True)
        return [brute.prompt(units(brute, history), frame, target) for history, target in pairs]

    return {
        "patchrec_fast": lambda round_: packer.pack((flat, offsets), targets),
        "patchrec_fast with plan": lambda round_: planner.pack((flat, offsets), targets),
        "brute force": loops,
    }


def rows(timings: list[harness.Timing], users: int) -> list[Row]:
    """Histories a second and times faster than the plain loops."""
    loops = timings[-1]
    return [
        {
            "contestant": timing.name,
            "median_per_s": round(users / timing.milliseconds() * 1e3),
            "p20_per_s": round(users / timing.milliseconds(0.8) * 1e3),
            "p80_per_s": round(users / timing.milliseconds(0.2) * 1e3),
            "rounds": len(timing.seconds),
            "contended": timing.contended,
            "ratio": round(timing.times_faster_than(loops), 2),
        }
        for timing in timings
    ]


@pytest.mark.parametrize("policy", POLICIES)
def test_packing(policy: str, settings: Settings, record: Recorder, benchmark: BenchmarkFixture) -> None:
    source = settings.source("ml-1m")
    users = min(32 if settings.quick else USERS, int((np.diff(source.dataset.offsets) > ITEMS).sum()))
    calls = contestants(source, policy, users)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        measured = rows(harness.measure(calls, **settings.rounds), users)
    finally:
        torch.set_num_threads(threads)
    record("packing", measured, {"data": source.label, "users": users, "policy": policy})
    for row in measured:
        benchmark.extra_info[row["contestant"]] = row
    benchmark.group = "packing alone"
    benchmark.pedantic(calls["patchrec_fast"], args=(0,), rounds=5)
