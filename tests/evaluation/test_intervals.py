# SPDX-License-Identifier: Apache-2.0
"""Bootstrap intervals and p-values: by enumeration, by a loop, and by SciPy."""

import itertools

import numpy as np
import pytest

from patchrec_fast.evaluation import intervals
from patchrec_fast.evaluation.intervals import compare, estimate


@pytest.fixture
def rng():
    return np.random.default_rng(1)


def resampled(values, users, draws, seed):
    """The means of `draws` resamplings, one user at a time."""
    generator = np.random.default_rng(seed)
    groups = [values[users == user] for user in np.unique(users)]
    means = []
    for _ in range(draws):
        drawn = np.concatenate([groups[place] for place in generator.integers(0, len(groups), len(groups))])
        means.append(drawn.mean())
    return np.array(means)


def test_users_are_drawn_with_all_their_samples(rng):
    """All but the draws themselves is checked: the loop draws other numbers, so by the spread of many draws."""
    users = np.repeat(np.arange(30), rng.integers(1, 12, 30))
    rng.shuffle(users)  # a user's samples need not be neighbours
    value = (rng.random(30)[users] > 0.6).astype(float)  # a user's samples are alike
    found = estimate({"HR@10": value}, users, draws=4000)["HR@10"]
    low, high = np.quantile(resampled(value, users, 2000, seed=5), [0.025, 0.975])
    width = high - low
    assert found.value == pytest.approx(value.mean())
    assert found.low == pytest.approx(low, abs=0.1 * width)
    assert found.high == pytest.approx(high, abs=0.1 * width)
    alone = estimate({"HR@10": value}, draws=4000)["HR@10"]
    assert alone.high - alone.low < 0.6 * width


def test_against_scipy(rng):
    stats = pytest.importorskip("scipy.stats")
    value = rng.random(80)
    found = estimate({"m": value}, draws=5000)["m"]
    theirs = stats.bootstrap((value,), np.mean, n_resamples=5000, method="percentile", rng=0).confidence_interval
    width = theirs.high - theirs.low
    assert found.low == pytest.approx(theirs.low, abs=0.05 * width)
    assert found.high == pytest.approx(theirs.high, abs=0.05 * width)


def test_the_seed_decides(rng):
    value = {"m": rng.random(50)}
    assert estimate(value, seed=3) == estimate(value, seed=3)
    assert estimate(value, seed=3) != estimate(value, seed=4)


def test_one_user_has_no_spread():
    assert estimate({"m": np.array([1.0, 0.0])}, [7, 7])["m"] == (0.5, 0.5, 0.5)
    assert estimate({"m": np.array([1.0])})["m"] == (1, 1, 1)


def test_in_parts(rng, monkeypatch):
    """More than is drawn at once: the numbers come in the same order."""
    value = {"a": rng.random(9), "b": rng.random(9)}
    whole = estimate(value, draws=50), compare(value, {"a": value["b"], "b": value["a"]}, permutations=70)
    monkeypatch.setattr(intervals, "_DRAWN_AT_ONCE", 9 * 7)
    assert estimate(value, draws=50) == whole[0]
    parts = compare(value, {"a": value["b"], "b": value["a"]}, permutations=70)
    assert parts["a"].difference == whole[1]["a"].difference


def test_p_against_all_signs(rng):
    """Six users: all 64 signs."""
    users = np.array([0, 0, 1, 2, 2, 2, 3, 4, 5, 5])
    first, second = rng.integers(0, 2, (2, 10)).astype(float)
    first[:4], second[:4] = 0, 1
    sums = np.bincount(users, second - first)
    all_signs = np.array(list(itertools.product((-1, 1), repeat=6))) @ sums
    exact = (np.abs(all_signs) >= abs(sums.sum())).mean()
    found = compare({"m": first}, {"m": second}, users, permutations=20_000)["m"]
    assert 0 < exact < 1
    assert found.p_value == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 20_000))
    assert found.difference.value == pytest.approx((second - first).mean())


def test_p_against_scipy(rng):
    stats = pytest.importorskip("scipy.stats")
    first, second = rng.random((2, 40))
    second += 0.1
    theirs = stats.permutation_test(
        (second, first), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=20_000, rng=0
    ).pvalue
    assert compare({"m": first}, {"m": second}, permutations=20_000)["m"].p_value == pytest.approx(theirs, abs=0.012)


def test_no_difference():
    value = np.array([0.1, 0.2, 0.7])
    found = compare({"m": value}, {"m": value.copy()})["m"]
    assert found.difference == (0, 0, 0)
    assert found.p_value == 1


def test_the_sign_is_second_minus_first():
    ones, zeros = np.ones(20), np.zeros(20)
    better = compare({"m": zeros}, {"m": ones}, permutations=999)["m"]
    assert better.difference == (1, 1, 1)
    assert better.p_value == pytest.approx(0.001)  # 2 of 2**20 signs, and the observed one
    assert compare({"m": ones}, {"m": zeros})["m"].difference.value == -1


def test_rounding_does_not_hide_a_tie():
    """0.1 + 0.2 + 0.3 + 0.7, summed as the signs are, comes out one bit below what sum makes of it."""
    found = compare({"m": np.zeros(4)}, {"m": np.array([0.1, 0.2, 0.3, 0.7])}, permutations=4000)["m"]
    assert found.p_value == pytest.approx(2 / 16, abs=0.025)


def test_equal_samples_have_no_spread():
    """However many samples a user has: a drawn mean is over the samples that were drawn."""
    assert estimate({"m": np.full(9, 0.5)}, [0, 1, 1, 1, 1, 1, 1, 2, 2])["m"] == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: estimate({}), "no metrics"),
        (lambda: estimate({"m": np.empty(0)}), "no samples"),
        (lambda: estimate({"m": np.ones(3)}, [1, 2]), r"users.*\(3,\)"),
        (lambda: estimate({"m": np.ones(3)}, confidence=1.0), "confidence"),
        (lambda: estimate({"m": np.ones(3)}, draws=0), "draws"),
        (lambda: compare({"m": np.ones(3)}, {"n": np.ones(3)}), "second"),
        (lambda: compare({"m": np.ones(3)}, {"m": np.ones(4)}), "second"),
        (lambda: compare({"m": np.ones(3)}, {"m": np.ones(3)}, permutations=0), "permutations"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
