# SPDX-License-Identifier: Apache-2.0
"""The baselines by name."""

from __future__ import annotations

import os
from typing import Any

import torch

from ..data import Dataset
from ..layout.catalogue import Catalogue
from .item_to_item import EASE, ItemKNN, Transitions
from .popularity import Chance, Popularity
from .ranker import Baseline
from .recipes import RECIPES
from .training import train

_COUNTED: dict[str, type[Popularity | Transitions | ItemKNN | EASE]] = {
    "popularity": Popularity,
    "transitions": Transitions,
    "item-knn": ItemKNN,
    "ease": EASE,
}
_PUBLISHED: dict[str, dict[str, Any]] = {
    "popularity": {},
    "transitions": {"window": 1, "history": 1, "discount": 0.0, "smoothing": 0.0},  # a Markov chain
    "item-knn": {"decay": 1.0, "window": None, "recency": 1.0},
    "ease": {"regularisation": 500.0, "decay": 1.0, "window": None, "recency": 1.0},
}
NAMES = ("chance", *_COUNTED, *RECIPES)


def baseline(
    name: str,
    dataset: Dataset,
    catalogue: Catalogue,
    *,
    recipe: str = "strong",
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Baseline:
    """Makes one, learning from the train split what there is to learn.

    Args:
        name: one of `NAMES`.
        dataset, catalogue: as of `Baseline`.
        recipe: "paper", as it was published (of the neural ones: as PatchRec's were trained), or "strong".
        seed: of "chance" and the neural ones.
        out, device, progress: of the neural ones, as `train` takes them; `out` they need.

    Raises:
        ValueError: an unknown name or recipe, no `out`; as `train` and the classes.
    """
    if name not in NAMES:
        raise ValueError(f"name: expected one of {', '.join(NAMES)}, got {name!r}")
    if recipe not in ("paper", "strong"):
        raise ValueError(f"recipe: expected paper or strong, got {recipe!r}")
    if name == "chance":
        return Chance(catalogue, seed)
    if name in _COUNTED:
        return _COUNTED[name](dataset, catalogue, **(_PUBLISHED[name] if recipe == "paper" else {}))
    if out is None:
        raise ValueError(f"out: expected a folder for what {name} learns, got None")
    return train(name, dataset, catalogue, out, recipe=recipe, seed=seed, device=device, progress=progress)
