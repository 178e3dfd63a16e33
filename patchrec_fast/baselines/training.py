# SPDX-License-Identifier: Apache-2.0
"""Trains any of the networks by a recipe, in rounds; a killed run goes on after its last whole round.

What a round does is a function of the seed and the round's number, so a resumed run ends as one that was not killed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from .. import _files, _json
from .._check import check_count
from .._lock import only_one
from ..data import Dataset
from ..layout.catalogue import Catalogue
from ..models import fingerprint
from ..ragged import Ragged, counting, to_offsets
from .networks import NETWORKS, Network
from .ranker import train_titles
from .recipes import RECIPES, Recipe
from .sequential import Sequential, padded

CHECKPOINT, WEIGHTS, ABOUT = "checkpoint.safetensors", "model.safetensors", "model.json"
VALIDATION = 1000  # samples of the val split that a round is judged by, evenly spread
_AT_ONCE = 128  # histories scored at once
_FEWEST = 3  # titles before a target of "bce", as `Dataset.split` has it
_ROUNDS = [{"loss": float, "HR@20": (float, type(None))}]


class _State(NamedTuple):
    """What goes on: the rounds that are done, and the round whose weights are the best."""

    rounds: list[dict[str, float | None]]
    step: int
    best: dict[str, Tensor]


def train(
    name: str,
    dataset: Dataset,
    catalogue: Catalogue,
    out: str | os.PathLike[str],
    *,
    recipe: str | Recipe = "strong",
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Sequential:
    """Trains on the users' histories up to their last interaction of the train split.

    After each round HR@20 of 1,000 val samples is counted, seen items allowed. The weights of the best round are kept;
    where there is no val split, or the learning rate falls until the end, those of the last.

    Args:
        name: "sasrec" or "gru4rec".
        dataset, catalogue: as of `Baseline`.
        out: a folder, for the checkpoint of the last round and in the end `model.safetensors` and `model.json`. A run
            that was killed, or is finished, goes on there.
        recipe: "paper", "strong", or one of your own.
        seed: of the weights, the order of the batches and dropout. On the CPU one seed gives the same weights; on a
            GPU sums are made in any order.
        device: where it trains.
        progress: a bar a round, where stderr is a terminal.

    Raises:
        ValueError: an unknown name or recipe; no history to learn from; an `out` of another run, or damaged.
        RuntimeError: a loss that is not finite; the rounds before are kept.
    """
    if name not in NETWORKS:
        raise ValueError(f"name: expected one of {', '.join(NETWORKS)}, got {name!r}")
    if isinstance(recipe, str):
        if recipe not in RECIPES[name]:
            raise ValueError(f"recipe: expected one of {', '.join(RECIPES[name])}, got {recipe!r}")
        recipe = RECIPES[name][recipe]
    titles, folder = train_titles(dataset, catalogue), Path(out)
    most = int(titles.lengths.max(initial=0))
    if most < (fewest := _FEWEST + 1 if recipe.loss == "bce" else 2):
        raise ValueError(f"dataset: expected a user with {fewest} interactions in the train split, got at most {most}")
    began_with = {
        "name": name,
        "recipe": fingerprint.plain(recipe),
        "seed": check_count("seed", seed, minimum=0),
        "histories": fingerprint.plain(np.concatenate(titles)),
        "titles": fingerprint.plain(np.stack([catalogue.item_ids, catalogue.answers])),
    }
    with torch.random.fork_rng(enabled=True), only_one(folder):
        torch.manual_seed(seed)
        network = NETWORKS[name](int(catalogue.answers.max()) + 1, recipe).to(device)
        ranker = Sequential(catalogue, network)
        optimizer = torch.optim.AdamW(network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
        state = _resume(folder / CHECKPOINT, began_with, network, optimizer)
        samples = _validation(dataset)
        while len(state.rounds) < recipe.rounds and not _gave_up(state.rounds, recipe):
            number = len(state.rounds)
            loss, step = _round(network, optimizer, titles, number, state.step, seed, progress)
            score = None if samples is None else _hit_rate(ranker, *samples)
            rounds = [*state.rounds, {"loss": loss, "HR@20": score}]
            best = _weights(network) if number == _best(rounds, recipe) else state.best
            state = _State(rounds, step, best)
            _save(folder / CHECKPOINT, began_with, network, optimizer, state)
        network.load_state_dict(state.best)
        _finish(folder, began_with, state)
    return ranker


def _round(
    network: Network,
    optimizer: torch.optim.Optimizer,
    titles: Ragged,
    number: int,
    step: int,
    seed: int,
    progress: bool,
) -> tuple[float, int]:
    """The mean loss of a round's steps, and the steps done by now."""
    from tqdm import tqdm

    recipe, device = network.recipe, network.titles.weight.device
    rng = np.random.default_rng([seed, number])
    torch.manual_seed(int(rng.integers(2**62)))
    passing = recipe.loss == "softmax"
    batches = _passed(titles, recipe, rng) if passing else [_drawn(titles, recipe, rng) for _ in range(recipe.steps)]
    total = torch.zeros((), device=device)
    network.train()
    words = f"round {number + 1} of {recipe.rounds}"
    for place, (begin, lengths) in enumerate(tqdm(batches, words, unit=" steps", disable=None if progress else True)):
        for group in optimizer.param_groups:
            rise = min(1.0, (step + 1) / recipe.warmup) if recipe.warmup else 1.0
            fall = 1 - (number + place / len(batches)) / recipe.rounds if recipe.falls else 1.0
            group["lr"] = recipe.learning_rate * rise * fall
        read = torch.from_numpy(padded(titles.values, begin, lengths)).to(device)
        if passing:
            ends = torch.from_numpy(padded(titles.values, begin + 1, lengths)).to(device)
            real = torch.from_numpy(np.arange(read.shape[1]) < lengths[:, None]).to(device)
            loss = F.cross_entropy(network.logits(network(read)[real]), ends[real])
        else:
            wanted = titles.values[begin + lengths]
            other = rng.integers(0, network.titles.num_embeddings - 1, len(wanted))
            other += other >= wanted  # any title but the wanted one
            last = network(read)[torch.arange(len(read), device=device), torch.from_numpy(lengths - 1).to(device)]
            both = network.pair_logits(last, torch.from_numpy(np.stack([wanted, other], 1)).to(device))
            loss = F.softplus(both * both.new_tensor([-1.0, 1.0])).mean()
        optimizer.zero_grad()
        loss.backward()
        if recipe.clip:
            nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
        optimizer.step()
        total += loss.detach()
        step += 1
    mean = total.item() / len(batches)
    if not np.isfinite(mean):
        raise RuntimeError(f"the loss of round {number + 1} is not finite; lower the learning rate")
    return mean, step


_Batch = tuple[NDArray[np.int64], NDArray[np.int64]]  # where each history begins in the titles, and how long it is


def _passed(titles: Ragged, recipe: Recipe, rng: np.random.Generator) -> list[_Batch]:
    """Every user's titles once, cut into windows at random places; about `batch` places a step, of like lengths."""
    reads = np.maximum(titles.lengths - 1, 0)  # (U,) the last title is only learnt
    first = np.where(reads > 0, rng.integers(1, recipe.length + 1, len(reads)), 0)  # (U,) the first window's length
    windows = np.where(reads > 0, 1 - (first - reads) // recipe.length, 0)  # (U,)
    cut = counting(first - recipe.length, windows, recipe.length)
    begin, end = np.maximum(cut, 0), np.minimum(cut + recipe.length, np.repeat(reads, windows))
    lengths = end - begin
    begin += np.repeat(titles.offsets[:-1], windows)
    order = rng.permutation(len(begin))
    order = order[np.argsort(-lengths[order], kind="stable")]
    batches, at = [], 0
    while at < len(order):
        count = max(1, recipe.batch // int(lengths[order[at]]))
        chosen = order[at : at + count]
        batches.append((begin[chosen], lengths[chosen]))
        at += count
    return [batches[place] for place in rng.permutation(len(batches))]


def _drawn(titles: Ragged, recipe: Recipe, rng: np.random.Generator) -> _Batch:
    """The histories of `batch` targets, drawn from all with replacement."""
    targets = np.maximum(titles.lengths - _FEWEST, 0)  # (U,)
    ends = to_offsets(targets)
    drawn = rng.integers(0, ends[-1], recipe.batch)
    user = np.searchsorted(ends, drawn, side="right") - 1
    position = drawn - ends[user] + _FEWEST  # of the target, inside the user's titles
    lengths = np.minimum(position, recipe.length)
    return titles.offsets[user] + position - lengths, lengths


def _validation(dataset: Dataset) -> tuple[list[NDArray[np.int32]], NDArray[np.int32]] | None:
    if "val" not in dataset.splits:
        return None
    (flat, offsets), targets = dataset.split("val", max_items=None)
    if not len(targets):
        return None
    chosen = np.unique(np.linspace(0, len(targets) - 1, min(VALIDATION, len(targets))).astype(np.int64))
    return [flat[offsets[at] : offsets[at + 1]] for at in chosen], targets[chosen]


def _hit_rate(ranker: Sequential, histories: list[NDArray[np.int32]], targets: NDArray[np.int32]) -> float:
    """HR@20."""
    parts = range(0, len(targets), _AT_ONCE)
    ranks = [ranker.rank(histories[at : at + _AT_ONCE], targets[at : at + _AT_ONCE]) for at in parts]
    return float((np.concatenate(ranks) <= 20).mean())


def _best(rounds: list[dict[str, float | None]], recipe: Recipe) -> int:
    """The last of the rounds with the highest score; without scores, or where the learning rate falls, the last."""
    if recipe.falls:
        return len(rounds) - 1
    return max(range(len(rounds)), key=lambda place: (rounds[place]["HR@20"] or 0.0, place))


def _gave_up(rounds: list[dict[str, float | None]], recipe: Recipe) -> bool:
    return bool(rounds) and len(rounds) - 1 - _best(rounds, recipe) >= recipe.patience


def _weights(network: Network) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}


def _save(
    path: Path, began_with: dict[str, Any], network: Network, optimizer: torch.optim.Optimizer, state: _State
) -> None:
    """One file: the weights, AdamW's moments and the best weights; what is small as JSON beside them."""
    parts = {"now": _weights(network), "best": state.best}
    for place, moments in optimizer.state_dict()["state"].items():
        parts[f"optimizer {place}"] = {key: value.detach().cpu() for key, value in moments.items()}
    tensors = {f"{part} {name}": value for part, own in parts.items() for name, value in own.items()}
    about = {"began_with": began_with, "rounds": state.rounds, "step": state.step}
    with _files.replacing(path) as temporary:
        save_file(tensors, temporary, {"training": json.dumps(about)})


def _resume(path: Path, began_with: dict[str, Any], network: Network, optimizer: torch.optim.Optimizer) -> _State:
    if not path.exists():
        return _State([], 0, _weights(network))
    try:
        with safe_open(path, "pt") as file:
            about = _json.loads((file.metadata() or {}).get("training", "null"))
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
        _json.check(about, {"began_with": dict, "rounds": _ROUNDS, "step": int})
    except Exception as error:  # safetensors has its own
        raise ValueError(f"{path}: not the checkpoint of a baseline, or damaged ({error}); remove it") from error
    if different := fingerprint.differences(about["began_with"], began_with):
        raise ValueError(
            f"out: the run in {path.parent} differs in {'; '.join(different)}; give another folder, or "
            "what that run had"
        )
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        part, _, key = name.rpartition(" ")
        parts.setdefault(part, {})[key] = value
    network.load_state_dict(parts["now"])
    moments = {int(part.split()[1]): own for part, own in parts.items() if part.startswith("optimizer")}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return _State(about["rounds"], about["step"], parts["best"])


def _finish(folder: Path, began_with: dict[str, Any], state: _State) -> None:
    with _files.replacing(folder / WEIGHTS) as temporary:
        save_file(state.best, temporary)
    about = {"name": began_with["name"], "seed": began_with["seed"], "began_with": began_with, "rounds": state.rounds}
    _files.write(folder / ABOUT, _json.dumps(about, indent=1))
