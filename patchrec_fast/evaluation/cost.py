# SPDX-License-Identifier: Apache-2.0
"""What a call of a recommender costs: rows, seconds by part of the work, peak memory."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch

from .memory import PeakMemory


class Cost(NamedTuple):
    """Of one call, all its users together."""

    rows: int | None  # of the prompts, which are a language model's tokens
    seconds: dict[str, float]  # by part of the work
    peak_memory: int  # bytes
    memory_kind: str


def measured(ranker: Any, method: str, /, *args: Any, **options: Any) -> tuple[Any, Cost]:
    """What a `Ranker`'s method, by name, makes of the arguments, and what that cost: as it says, else by the clock."""
    memory = PeakMemory(getattr(ranker, "device", torch.device("cpu")))
    start = time.perf_counter()
    found = getattr(ranker, method)(*args, **options)
    seconds = {method: time.perf_counter() - start}
    rows, seconds = getattr(found, "rows", None), getattr(found, "seconds", seconds)
    return found, Cost(rows, seconds, memory.bytes(), memory.kind)
