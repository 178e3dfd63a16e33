# SPDX-License-Identifier: Apache-2.0
"""What a call of a recommender costs: rows, seconds by part of the work, peak memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ..layout.histories import Histories
from .memory import PeakMemory

if TYPE_CHECKING:
    from ..recommend import Recommendations, Recommender


class Cost(NamedTuple):
    """Of one call, all its users together."""

    rows: int  # of the prompts, which are the language model's tokens
    seconds: dict[str, float]  # by PARTS
    peak_memory: int  # bytes
    memory_kind: str


def measured(rec: Recommender, histories: Histories, **options: Any) -> tuple[Recommendations, Cost]:
    """`rec.recommend(histories, **options)`, and what it cost."""
    memory = PeakMemory(next(rec.model.parameters()).device)
    found = rec.recommend(histories, **options)
    return found, Cost(found.rows, found.seconds, memory.bytes(), memory.kind)
