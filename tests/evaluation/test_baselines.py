# SPDX-License-Identifier: Apache-2.0
"""Popularity and chance: by hand, by sorting, and on the real data."""

import numpy as np
import pytest

from patchrec_fast import data
from patchrec_fast.data import Dataset, Samples
from patchrec_fast.evaluation import Chance, Popularity, evaluate
from patchrec_fast.evaluation.metrics import MISS, values
from patchrec_fast.recommend import Ranker
from tests.recommend.catalogues import catalogue_of


def of_strings(dataset):
    """A catalogue in which titles with one string are one."""
    number = {title: place for place, title in enumerate(dict.fromkeys(dataset.titles.values()))}
    return catalogue_of({item: (number[title],) for item, title in dataset.titles.items()})


def baseline_ranks(dataset, found, seed=0, catalogue=None):
    """name -> ranks."""
    catalogue = of_strings(dataset) if catalogue is None else catalogue
    rankers = {"popularity": Popularity(dataset, catalogue), "random": Chance(catalogue, seed)}
    assert all(isinstance(each, Ranker) for each in rankers.values())
    made = {name: each.rank(*found) for name, each in rankers.items()}
    return made | {f"{name}, unseen": each.rank(*found, exclude_seen=True) for name, each in rankers.items()}


@pytest.fixture
def hand():
    """Titles A (items 10 and 30), B, C, D; train counts A 3, B 2, C 2, D 0."""
    return Dataset(
        items=np.array([10, 20, 40, 30, 20, 40, 10, 50], np.int32),
        offsets=np.array([0, 4, 8]),
        titles={50: "D", 10: "A", 20: "B", 30: "A", 40: "C"},
        splits={
            "train": np.array([[0, 3], [0, 2]], np.int32),
            "test": np.array([[-1, -1], [3, 3]], np.int32),
        },
    )


def samples(histories, targets):
    offsets = np.concatenate([[0], np.cumsum([len(history) for history in histories])])
    return Samples((np.concatenate(histories).astype(np.int32), offsets), np.array(targets, np.int32))


def test_by_hand(hand):
    """The tie of B and C is to the target's disadvantage; A is left out where both of its items are seen."""
    histories = [[20], [20], [10], [10, 30], [30, 20, 20, 30], [10, 20, 20, 30], [50]]
    ranked = baseline_ranks(hand, samples(histories, [10, 40, 20, 20, 50, 50, 50]))
    assert ranked["popularity"].tolist() == [1, 3, 3, 3, 4, 4, 4]
    assert ranked["popularity, unseen"].tolist() == [1, 2, 3, 2, 3, 2, MISS]


def test_titles_by_tokens(hand):
    """A model cannot tell A from C here: popularity and chance are not told more than it is."""
    catalogue = catalogue_of({50: (1,), 10: (2, 3), 20: (4,), 30: (2, 3), 40: (2, 3)})
    found = samples([[20], [20, 10, 30], [20, 10, 30, 40]], [40, 30, 30])
    ranked = baseline_ranks(hand, found, catalogue=catalogue)
    assert ranked["popularity"].tolist() == [1, 1, 1]
    assert ranked["popularity, unseen"].tolist() == [1, 1, MISS]
    assert 1 <= min(ranked["random"]) <= max(ranked["random"]) <= 3
    with pytest.raises(ValueError, match="10 is not in the catalogue of 1 items"):
        baseline_ranks(hand, found, catalogue=catalogue_of({50: (1,)}))


def test_an_item_without_a_title(hand):
    with pytest.raises(ValueError, match="60 is not in the catalogue"):
        baseline_ranks(hand, samples([[20, 60]], [10]))
    with pytest.raises(ValueError, match="targets: got 2 for 1 histories"):
        baseline_ranks(hand, samples([[20]], [10, 10]))


def test_recommended_by_hand(hand):
    """A, then B and C, which tie, then D; of A the first item that is unseen."""
    popular = Popularity(hand, of_strings(hand))
    found = popular.recommend([[20], [10], [10, 30], [10, 20, 30, 40, 50]], 5)
    assert found.items.tolist() == [[10, 20, 40, 50, -1]] * 4
    found = popular.recommend([[20], [10], [10, 30], [10, 20, 30, 40, 50]], 3, exclude_seen=True)
    assert found.items.tolist() == [[10, 40, 50], [30, 20, 40], [20, 40, 50], [-1, -1, -1]]
    assert len(found) == 4


@pytest.mark.parametrize("unseen", [False, True])
def test_lists_and_ranks_agree(sample, unseen):
    """Where nothing ties, the target stands in the list at its rank; so `evaluate` finds the same both ways."""
    found = sample.split("test", max_items=30)
    ranker = Chance(of_strings(sample))
    listed, asked = (evaluate(ranker, found, (300,), by=by, exclude_seen=unseen) for by in ("recommend", "rank"))
    assert listed.ranks == asked.ranks == ranker.rank(*found, exclude_seen=unseen).tolist()
    assert len(set(listed.ranks)) > 20


def brute_force(dataset, found, exclude_seen):
    """Sort all titles for each sample; among equals the target comes last."""
    counts = dict.fromkeys(dataset.titles.values(), 0)
    for user, (_, last) in enumerate(dataset.splits["train"]):
        for item in dataset.items[dataset.offsets[user] : dataset.offsets[user] + last + 1]:
            counts[dataset.titles[item]] += 1
    (flat, offsets), targets = found
    ranked = []
    for place, target in enumerate(targets):
        watched = set(flat[offsets[place] : offsets[place + 1]].tolist()) if exclude_seen else set()
        seen = set(counts) - {title for item, title in dataset.titles.items() if item not in watched}
        answer = dataset.titles[target]
        order = sorted(set(counts) - seen, key=lambda title: (-counts[title], title == answer))
        ranked.append(order.index(answer) + 1 if answer in order else MISS)
    return ranked


def test_against_sorting(sample):
    found = sample.split("test", max_items=30)
    ranked = baseline_ranks(sample, found)
    assert ranked["popularity"].tolist() == brute_force(sample, found, exclude_seen=False)
    assert ranked["popularity, unseen"].tolist() == brute_force(sample, found, exclude_seen=True)


def test_a_target_seen_before_is_a_miss(hand):
    found = samples([[10, 30], [20]], [30, 20])
    ranked = baseline_ranks(hand, found)
    assert ranked["popularity, unseen"].tolist() == [MISS, MISS]
    assert ranked["random, unseen"].tolist() == [MISS, MISS]
    assert MISS not in ranked["popularity"]


def test_everything_but_the_target_seen(hand):
    ranked = baseline_ranks(hand, samples([[10, 20, 30, 40]], [50]))
    assert ranked["popularity, unseen"].tolist() == ranked["random, unseen"].tolist() == [1]


def test_chance_is_uniform(hand):
    """4 titles; 3 where C was seen: each place as often, within 4 standard deviations."""
    count = 6000
    histories = [[40] * (1 + place) for place in range(60)]
    parts = [baseline_ranks(hand, samples(histories, [20] * 60), seed) for seed in range(count // 60)]
    ranked = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for name, places in (("random", 4), ("random, unseen", 3)):
        spread = 4 * np.sqrt(count / places * (1 - 1 / places))
        assert np.bincount(ranked[name] - 1, minlength=places) == pytest.approx(
            np.full(places, count / places), abs=spread
        )


def test_the_seed_decides(sample):
    found = sample.split("test")
    first, same, other = (baseline_ranks(sample, found, seed=seed)["random"].tolist() for seed in (0, 0, 1))
    assert first == same != other


def test_no_train_split(hand):
    hand.splits.pop("train")
    with pytest.raises(ValueError, match="train"):
        baseline_ranks(hand, samples([[10]], [20]))


def test_ml_100k(data_dir):
    """Popularity finds a hundred times what chance does, and more where what was seen is left out."""
    dataset = data.load(data_dir / "ml-100k")
    ranked = baseline_ranks(dataset, dataset.split("test", max_items=None))
    hits = {name: values(places, (20,))["HR@20"].mean() for name, places in ranked.items()}
    assert hits["popularity"] == pytest.approx(0.0684, abs=5e-5)
    assert hits["popularity, unseen"] == pytest.approx(0.1230, abs=5e-5)
    assert hits["random"] == pytest.approx(20 / 1658, abs=3 * np.sqrt(20 / 1658 / 1024))
