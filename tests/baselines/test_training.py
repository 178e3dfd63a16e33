# SPDX-License-Identifier: Apache-2.0
"""The trainer: what a round reads, that it learns, one seed, one result, and a killed run that goes on."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from patchrec_fast.baselines import train, training
from patchrec_fast.baselines.networks import NETWORKS
from patchrec_fast.baselines.recipes import RECIPES
from patchrec_fast.data import Dataset
from patchrec_fast.ragged import Ragged, to_offsets
from tests.recommend.catalogues import catalogue_of

ITEMS = 30
SMALL = {"width": 16, "inner": 32, "heads": 2, "length": 8, "warmup": 2, "learning_rate": 0.02, "dropout": 0.0}
each_recipe = pytest.mark.parametrize(("name", "loss"), list(itertools.product(NETWORKS, ("paper", "strong"))))


def small(name, loss, **changes):
    return dataclasses.replace(RECIPES[name][loss], **{"batch": 64, "rounds": 3, "steps": 5, **SMALL, **changes})


@pytest.fixture(scope="module")
def cyclic():
    """Users who go round 30 items, each from another one on, and a catalogue of them."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(6, 50, 60)
    items = np.concatenate([(np.arange(size) + rng.integers(ITEMS)) % ITEMS for size in lengths])
    splits = {
        "train": np.stack([0 * lengths, lengths - 3], 1),
        "val": np.stack([lengths - 2, lengths - 2], 1),
        "test": np.stack([lengths - 1, lengths - 1], 1),
    }
    dataset = Dataset(items, to_offsets(lengths), {item: str(item) for item in range(ITEMS)}, splits)
    return dataset, catalogue_of({item: (item,) for item in range(ITEMS)})


def weights(folder):
    return load_file(folder / "model.safetensors")


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@each_recipe
def test_a_cycle_is_learnt(cyclic, tmp_path, name, loss):
    recipe = small(name, loss, rounds=3 if loss == "paper" else 16, steps=100)
    ranker = train(name, *cyclic, tmp_path, recipe=recipe)
    assert ranker.rank(*cyclic[0].split("test")).tolist() == [1] * 60


@each_recipe
def test_one_seed_one_result(cyclic, tmp_path, name, loss):
    recipe = small(name, loss, dropout=0.2)
    for folder, seed in (("first", 3), ("same", 3), ("other", 4)):
        torch.manual_seed(len(folder))  # of the caller, which says nothing
        before = torch.random.get_rng_state()
        train(name, *cyclic, tmp_path / folder, recipe=recipe, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), before)
    first, same, other = (weights(tmp_path / folder) for folder in ("first", "same", "other"))
    assert equal(first, same)
    assert not equal(first, other)


@each_recipe
@pytest.mark.parametrize("after", [1, 2])
def test_a_killed_run_goes_on(cyclic, tmp_path, monkeypatch, name, loss, after):
    recipe = small(name, loss, dropout=0.2)
    train(name, *cyclic, tmp_path / "whole", recipe=recipe)
    done, real = [], training._round

    def killed(*arguments):
        if len(done) == after:
            raise KeyboardInterrupt
        done.append(real(*arguments))
        return done[-1]

    with monkeypatch.context() as patch:
        patch.setattr(training, "_round", killed)
        with pytest.raises(KeyboardInterrupt):
            train(name, *cyclic, tmp_path / "killed", recipe=recipe)
    train(name, *cyclic, tmp_path / "killed", recipe=recipe)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    assert (tmp_path / "whole/model.json").read_text() == (tmp_path / "killed/model.json").read_text()


def test_a_finished_run_is_opened(cyclic, tmp_path, monkeypatch):
    recipe = small("gru4rec", "strong")
    first = train("gru4rec", *cyclic, tmp_path, recipe=recipe)
    monkeypatch.setattr(training, "_round", None)
    again = train("gru4rec", *cyclic, tmp_path, recipe=recipe)
    assert first.fingerprint() == again.fingerprint()


def test_the_best_round_is_kept_and_patience_ends(cyclic, tmp_path, monkeypatch):
    scores = iter([0.1, 0.5, 0.4, 0.5, 0.3, 0.2, 0.1])
    kept = []
    monkeypatch.setattr(training, "_hit_rate", lambda ranker, *_: kept.append(weights_of(ranker)) or next(scores))
    train("sasrec", *cyclic, tmp_path, recipe=small("sasrec", "strong", rounds=20, patience=2, falls=False))
    assert len(kept) == 6
    assert equal(weights(tmp_path), kept[3])


def test_a_falling_rate_ends_at_the_last_round(cyclic, tmp_path, monkeypatch):
    scores = iter([0.1, 0.5, 0.4, 0.3])
    monkeypatch.setattr(training, "_hit_rate", lambda *_: next(scores))
    ranker = train("sasrec", *cyclic, tmp_path, recipe=small("sasrec", "strong", rounds=4, patience=1))
    now = load_file(tmp_path / "checkpoint.safetensors")
    assert equal(weights(tmp_path), {name: now[f"now {name}"] for name in ranker.network.state_dict()})


def weights_of(ranker):
    return {name: value.clone() for name, value in ranker.network.state_dict().items()}


def test_without_a_val_split(cyclic, tmp_path):
    dataset, catalogue = cyclic
    splits = {name: split for name, split in dataset.splits.items() if name != "val"}
    ranker = train(
        "gru4rec", dataclasses.replace(dataset, splits=splits), catalogue, tmp_path, recipe=small("gru4rec", "paper")
    )
    assert '"HR@20": null' in (tmp_path / "model.json").read_text()
    assert equal(weights_of(ranker), weights(tmp_path))


def random_titles(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 40, 25)
    return Ragged(rng.integers(0, 9, lengths.sum()), to_offsets(lengths))


@pytest.mark.parametrize("seed", range(8))
def test_a_pass_reads_each_title_once(seed):
    """All but each user's last, which is learnt and not read; windows are of one user and not too long."""
    titles, rng = random_titles(seed), np.random.default_rng(seed)
    recipe = small("sasrec", "strong", length=1 + seed % 7, batch=30)
    batches = training._passed(titles, recipe, rng)
    read = [
        place for begin, lengths in batches for b, n in zip(begin, lengths, strict=True) for place in range(b, b + n)
    ]
    offsets = titles.offsets.tolist()
    assert sorted(read) == [place for b, e in itertools.pairwise(offsets) for place in range(b, e - 1)]
    owners = titles.owners()
    for begin, lengths in batches:
        assert 1 <= lengths.min() <= lengths.max() <= recipe.length
        assert len(begin) == 1 or lengths.max() * len(begin) <= recipe.batch
        assert (owners[begin] == owners[begin + lengths]).all()


@pytest.mark.parametrize("seed", range(4))
def test_drawn_targets(seed):
    """Each target as often, with the newest titles before it."""
    titles, rng = random_titles(seed), np.random.default_rng(seed)
    recipe = small("sasrec", "paper", batch=40_000)
    begin, lengths = training._drawn(titles, recipe, rng)
    target, owners = begin + lengths, titles.owners()
    assert (owners[begin] == owners[target]).all()
    position = target - titles.offsets[owners[target]]
    assert position.min() == 3
    np.testing.assert_array_equal(lengths, np.minimum(position, recipe.length))
    targets = np.maximum(titles.lengths - 3, 0).sum()
    times = np.bincount(target)
    assert np.count_nonzero(times) == targets
    mean = 40_000 / targets
    assert abs(times[times > 0] - mean).max() < 5 * mean**0.5


def test_what_cannot_be_trained(cyclic, tmp_path):
    with pytest.raises(ValueError, match="name: expected one of sasrec, gru4rec, got 'caser'"):
        train("caser", *cyclic, tmp_path)
    with pytest.raises(ValueError, match="recipe: expected one of paper, strong, got 'best'"):
        train("sasrec", *cyclic, tmp_path, recipe="best")
    with pytest.raises(RuntimeError, match="loss of round 1 is not finite"):
        train("sasrec", *cyclic, tmp_path, recipe=small("sasrec", "strong", learning_rate=1e30, clip=0.0, warmup=0))
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_run(cyclic, tmp_path):
    train("sasrec", *cyclic, tmp_path, recipe=small("sasrec", "strong", rounds=1))
    before = weights(tmp_path)
    for changed, said in (
        (small("sasrec", "strong", rounds=2), "rounds 1 and not 2"),
        (small("sasrec", "paper"), "loss"),
    ):
        with pytest.raises(ValueError, match=f"out: the run in .* differs in .*{said}"):
            train("sasrec", *cyclic, tmp_path, recipe=changed)
    with pytest.raises(ValueError, match="seed 0 and not 1"):
        train("sasrec", *cyclic, tmp_path, recipe=small("sasrec", "strong", rounds=1), seed=1)
    assert equal(before, weights(tmp_path))
    checkpoint = tmp_path / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors: not the checkpoint of a baseline, or damaged"):
        train("sasrec", *cyclic, tmp_path, recipe=small("sasrec", "strong", rounds=1))
