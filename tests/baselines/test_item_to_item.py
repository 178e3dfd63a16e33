# SPDX-License-Identifier: Apache-2.0
"""Transitions, ItemKNN and EASE against loops, ridge regression and sorting, on random data."""

import numpy as np
import pytest
import torch

from patchrec_fast import data
from patchrec_fast.baselines import EASE, ItemKNN, Transitions
from patchrec_fast.evaluation import evaluate
from patchrec_fast.layout import Catalogue
from patchrec_fast.recommend import Ranker
from tests.baselines.random_data import histories_of, random_data

EVERY = {
    "transitions": (Transitions, {}),
    "knn": (ItemKNN, {"neighbours": 4}),
    "ease": (EASE, {"regularisation": 3.0}),
    "ease, recent": (EASE, {"regularisation": 3.0, "decay": 0.7, "window": 5, "recency": 0.8, "history": 6}),
}


def train_of(dataset):
    """Each user's titles of the train split, as strings."""
    for user, (_, last) in enumerate(dataset.splits["train"]):
        begin = dataset.offsets[user]
        yield [dataset.titles[item] for item in dataset.items[begin : begin + last + 1].tolist()]


def order_of(catalogue, dataset):
    """The titles by number."""
    first = np.unique(catalogue.answers, return_index=True)[1]
    return [dataset.titles[item] for item in catalogue.item_ids[first].tolist()]


def counted(dataset, titles, decay, window, both):
    found = np.zeros((len(titles), len(titles)))
    for history in train_of(dataset):
        for i, one in enumerate(history):
            for j, other in enumerate(history):
                distance = abs(i - j) if both else j - i
                if (distance > 0 or (both and i == j)) and distance <= window:
                    found[titles.index(one), titles.index(other)] += decay**distance
    return found


def scored(weight, history, titles, recency, longest):
    """(A,) by a loop over the history."""
    found = np.zeros(len(titles))
    for age, title in enumerate(history[::-1][:longest]):
        found += recency**age * weight[titles.index(title)]
    return found


def check(ranker, dataset, expected):
    """scores, rank and recommend are what the titles' expected scores (B, A) say."""
    titles = order_of(ranker.catalogue, dataset)
    histories, targets = histories_of(dataset.split("test", max_items=None, min_position=1))
    scores = ranker.scores(histories)
    assert scores.shape == (len(targets), len(ranker.catalogue))
    wanted = np.stack([expected([dataset.titles[item] for item in history], titles) for history in histories])
    numbers = [titles.index(dataset.titles[item]) for item in ranker.catalogue.item_ids.tolist()]
    np.testing.assert_allclose(scores, wanted[:, numbers], rtol=2e-4, atol=2e-5)


def test_transitions(made):
    dataset, catalogue = made
    titles = order_of(catalogue, dataset)
    weight = counted(dataset, titles, 0.6, 4, both=False)
    times = np.array([max(1, sum(history.count(title) for history in train_of(dataset))) for title in titles])
    weight /= weight.sum(1, keepdims=True) + 2.0
    settings = {"decay": 0.6, "window": 4, "recency": 0.8, "history": 5, "discount": 0.3, "smoothing": 2.0}
    ranker = Transitions(dataset, catalogue, **settings)
    check(ranker, dataset, lambda history, titles: scored(weight / times**0.3, history, titles, 0.8, 5))


@pytest.mark.parametrize(("decay", "window"), [(1.0, None), (0.7, 6)])
def test_knn(made, decay, window):
    dataset, catalogue = made
    titles = order_of(catalogue, dataset)
    near = counted(dataset, titles, decay, window or 99, both=True)
    norm = np.sqrt(np.diag(near))
    near = near / (np.outer(norm, norm) + 2.0)
    np.fill_diagonal(near, 0)
    for column in near.T:
        column[np.argsort(-column)[4:]] = 0
    ranker = ItemKNN(dataset, catalogue, neighbours=4, shrink=2.0, decay=decay, window=window, recency=0.9)
    check(ranker, dataset, lambda history, titles: scored(near, history, titles, 0.9, None))


def test_ease_is_ridge_regression(made):
    """Each title from all others, one at a time."""
    dataset, catalogue = made
    titles = order_of(catalogue, dataset)
    rows = np.array([[history.count(title) for title in titles] for history in train_of(dataset)], float)
    weight = np.zeros((len(titles), len(titles)))
    for place in range(len(titles)):
        others = np.delete(np.arange(len(titles)), place)
        known = rows[:, others]
        weight[others, place] = np.linalg.solve(known.T @ known + 3.0 * np.eye(len(others)), known.T @ rows[:, place])
    for dtype in (torch.float64, torch.float32):
        ranker = EASE(dataset, catalogue, regularisation=3.0, decay=1, window=None, recency=0.5, dtype=dtype)
        check(ranker, dataset, lambda history, titles: scored(weight, history, titles, 0.5, None))


def test_ease_by_distance(made):
    dataset, catalogue = made
    titles = order_of(catalogue, dataset)
    inverse = np.linalg.inv(counted(dataset, titles, 0.7, 5, both=True) + 3.0 * np.eye(len(titles)))
    weight = -inverse / np.diag(inverse)
    np.fill_diagonal(weight, 0)
    ranker = EASE(dataset, catalogue, regularisation=3.0, decay=0.7, window=5, recency=1)
    check(ranker, dataset, lambda history, titles: scored(weight, history, titles, 1.0, None))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("unseen", [False, True])
def test_ranks_and_lists_are_the_scores_sorted(made, name, unseen):
    dataset, catalogue = made
    kind, options = EVERY[name]
    ranker = kind(dataset, catalogue, **options)
    assert isinstance(ranker, Ranker)
    samples = dataset.split("test", max_items=None, min_position=1)
    histories, targets = histories_of(samples)
    scores, ranks = ranker.scores(histories), ranker.rank(histories, targets, exclude_seen=unseen)
    listed = ranker.recommend(histories, 20, exclude_seen=unseen).items
    ids, answers = catalogue.item_ids.tolist(), catalogue.answers.tolist()
    for history, target, score, rank, items in zip(histories, targets, scores, ranks, listed, strict=True):
        left = {}  # title -> its first item that may be given, and the score
        for place, item in enumerate(ids):
            if not (unseen and item in history):
                left.setdefault(answers[place], (item, score[place]))
        own = answers[ids.index(target)]
        above = sum(value >= left[own][1] for _, value in left.values()) if own in left else -1
        assert rank == above
        order = sorted(sorted(left), key=lambda title: -left[title][1])
        assert items.tolist() == [left[title][0] for title in order] + [-1] * (20 - len(order))
    assert evaluate(ranker, samples, by="rank", exclude_seen=unseen).ranks == ranks.tolist()


def test_one_title_alone():
    dataset, _ = random_data(0)
    one = Catalogue.of_bytes(dict.fromkeys(dataset.titles, "the only one"))
    for kind, options in EVERY.values():
        assert kind(dataset, one, **options).rank([[one.item_ids[0]]], [one.item_ids[1]]).tolist() == [1]


def test_what_the_answers_depend_on(made):
    dataset, catalogue = made
    first, same, other = (EASE(dataset, catalogue, recency=recency).fingerprint() for recency in (0.5, 0.5, 0.6))
    assert first == same != other


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Transitions, {"window": 0}, "window: expected at least 1, got 0"),
        (Transitions, {"decay": 1.5}, "decay: expected a number between 0 and 1, got 1.5"),
        (Transitions, {"history": 0}, "history: expected at least 1, got 0"),
        (ItemKNN, {"neighbours": 0}, "neighbours: expected at least 1, got 0"),
        (EASE, {"regularisation": 0}, "regularisation: expected"),
        (EASE, {"recency": -1}, "recency: expected"),
    ],
)
def test_options_out_of_range(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(*random_data(0), **options)


def test_no_train_split():
    dataset, catalogue = random_data(0)
    dataset.splits.pop("train")
    with pytest.raises(ValueError, match="expected a train split"):
        EASE(dataset, catalogue)


def test_ml_100k(data_dir):
    """The newest titles say more than popularity does."""
    dataset = data.load(data_dir / "ml-100k")
    ranker = Transitions(dataset, Catalogue.of_bytes(dataset.titles))
    report = evaluate(ranker, dataset.split("test", max_items=None), by="rank", batch_size=256, exclude_seen=True)
    assert report.metrics()["HR@20"].value > 0.15
