# SPDX-License-Identifier: Apache-2.0
"""How the neural baselines are trained: as the paper's code does, and as well as they can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Recipe:
    """Of one network.

    Attributes:
        loss: "softmax", over all titles at every place of a user's history; "bce", one random title beside the one
            that came next, at the last place of a drawn history.
        width: of the states, d.
        layers: blocks, or recurrent layers.
        heads: of a block's attention.
        inner: the width inside a block.
        tied: scores are inner products with the titles' embeddings; else there is an output layer, with a bias.
        dropout: the probability.
        length: the newest titles that are read.
        batch: a step's histories with "bce", places with "softmax".
        rounds: after each comes a validation and a checkpoint; with "softmax" one is a pass over all users.
        steps: a round's with "bce"; unused with "softmax".
        learning_rate: AdamW's peak.
        weight_decay: AdamW's.
        warmup: steps in which the learning rate rises from 0.
        falls: whether it then falls to 0 in a straight line; the last round's weights are the result then.
        clip: the gradient's largest norm; 0 leaves it.
        patience: rounds without a better validation, after which training stops, unless the learning rate falls.
    """

    loss: Literal["softmax", "bce"]
    width: int
    layers: int
    batch: int
    rounds: int
    learning_rate: float
    length: int
    heads: int = 1
    inner: int = 0
    tied: bool = True
    dropout: float = 0.1
    steps: int = 0
    weight_decay: float = 0.0
    warmup: int = 0
    falls: bool = False
    clip: float = 0.0
    patience: int = 10


_PAPER = Recipe(
    "bce", width=64, layers=1, batch=256, rounds=30, learning_rate=1e-3, length=100, heads=1, inner=64, tied=False,
    dropout=0.1, steps=2000, weight_decay=1e-6, patience=5,
)  # fmt: skip
RECIPES: dict[str, dict[str, Recipe]] = {
    "sasrec": {
        "paper": _PAPER,
        "strong": Recipe(
            "softmax", width=128, layers=2, batch=3200, rounds=6, learning_rate=2e-3, length=200, heads=2, inner=256,
            dropout=0.2, weight_decay=0.01, warmup=100, falls=True, clip=1.0,
        ),
    },
    "gru4rec": {
        "paper": _PAPER,
        "strong": Recipe(
            "softmax", width=128, layers=1, batch=3200, rounds=4, learning_rate=4e-3, length=200,
            dropout=0.2, weight_decay=0.01, warmup=100, falls=True, clip=1.0,
        ),
    },
}  # fmt: skip
