# SPDX-License-Identifier: Apache-2.0
"""HR and NDCG: by hand, by a loop over samples, and by other people's libraries."""

import math

import numpy as np
import pytest

from patchrec_fast.evaluation.metrics import MISS, ranks, values


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_by_hand():
    found = values([1, 3, MISS, 10, 11, 20, 21], (1, 10, 20))
    half = 1 / math.log2(4)
    assert found["HR@1"].tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert found["NDCG@1"].tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert found["HR@10"].tolist() == [1, 1, 0, 1, 0, 0, 0]
    assert found["NDCG@10"].tolist() == pytest.approx([1, half, 0, 1 / math.log2(11), 0, 0, 0])
    assert found["HR@20"].tolist() == [1, 1, 0, 1, 1, 1, 0]
    assert found["NDCG@20"][5] == pytest.approx(1 / math.log2(21))


def test_a_miss_is_no_hit_at_any_k():
    """The released code gives a miss the rank 20, a hit of HR@K for every K above."""
    assert values([MISS], (10**6,))["HR@1000000"].tolist() == [0]


def test_no_samples():
    assert values([], (10,))["HR@10"].shape == (0,)


def brute_force(lists, targets, k):
    """Per sample: walk down the list."""
    hits, gains = [], []
    for listed, target in zip(lists, targets, strict=True):
        hit = gain = 0.0
        for place, answer in enumerate(listed[:k]):
            if answer == target:
                hit, gain = 1.0, 1 / math.log2(place + 2)
                break
        hits.append(hit)
        gains.append(gain)
    return hits, gains


@pytest.mark.parametrize("width", [1, 7, 20])
def test_against_a_loop(rng, width):
    """Answers are drawn with replacement, so lists repeat them; some lists are short."""
    lists = rng.integers(0, 30, (211, width))
    lists[rng.random(lists.shape) < 0.1] = -1
    targets = rng.integers(0, 30, 211)
    found = values(ranks(lists, targets), (1, 3, width))
    for k in (1, 3, width):
        hits, gains = brute_force(lists.tolist(), targets.tolist(), k)
        assert found[f"HR@{k}"].tolist() == hits
        assert found[f"NDCG@{k}"] == pytest.approx(gains, abs=1e-15)


def test_the_first_of_two_places_counts():
    """The released code takes the last."""
    assert ranks([[4, 7, 4], [7, 4, 4]], [4, 4]).tolist() == [1, 2]


def test_lists_of_nothing():
    assert ranks(np.empty((2, 0), int), [0, 1]).tolist() == [MISS, MISS]
    assert ranks(np.empty((0, 5), int), []).tolist() == []


def test_an_absent_answer_is_no_target():
    with pytest.raises(ValueError, match=r"targets.*-1"):
        ranks([[-1, 2]], [-1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: values([1], ()), "ks"),
        (lambda: values([1], (0,)), "ks"),
        (lambda: values([-2], (1,)), "ranks"),
        (lambda: values([3, 0], (1,)), "a rank from 1, got 0"),
        (lambda: ranks([1, 2], [1]), r"\(2,\) and \(1,\)"),
        (lambda: ranks([[1, 2]], [1, 2]), r"\(1, 2\) and \(2,\)"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.fixture
def case(rng):
    """Scores without ties, and targets: (S, A), (S,)."""
    return rng.random((40, 25)).astype(np.float32), rng.integers(0, 25, 40)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_against_scikit_learn(case, k):
    ndcg_score = pytest.importorskip("sklearn.metrics").ndcg_score
    scores, targets = case
    relevant = np.eye(25)[targets]
    found = values(ranks(np.argsort(-scores, axis=1), targets), (k,))
    assert found[f"NDCG@{k}"].mean() == pytest.approx(ndcg_score(relevant, scores, k=k), abs=1e-12)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_against_torchmetrics(case, k):
    retrieval = pytest.importorskip("torchmetrics.functional.retrieval")
    import torch

    scores, targets = case
    found = values(ranks(np.argsort(-scores, axis=1), targets), (k,))
    for row, target, hit, gain in zip(scores, targets, found[f"HR@{k}"], found[f"NDCG@{k}"], strict=True):
        predicted, relevant = torch.from_numpy(row), torch.zeros(25, dtype=torch.long)
        relevant[target] = 1
        assert hit == retrieval.retrieval_hit_rate(predicted, relevant, top_k=k).item()
        assert gain == pytest.approx(retrieval.retrieval_normalized_dcg(predicted, relevant, top_k=k).item(), abs=1e-6)
