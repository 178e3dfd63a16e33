# SPDX-License-Identifier: Apache-2.0
"""Splits by time against a count in plain Python with exact fractions, and the last ones of each user."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from patchrec_fast.data.splits import leave_one_out, split_by_time


def brute(times, offsets, shares):
    """The quantile by its definition: linear between the two neighbours of (N - 1) * share."""
    ordered = sorted(times)
    moments = []
    for share in (Fraction(shares[0], sum(shares)), Fraction(shares[0] + shares[1], sum(shares))):
        place = (len(ordered) - 1) * share
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        moments.append(ordered[low] + (place - low) * (ordered[high] - ordered[low]))
    splits = {"train": [], "val": [], "test": []}
    for begin, end in pairwise(offsets):
        numbers = [sum(time > moment for moment in moments) for time in times[begin:end]]
        for number, name in enumerate(splits):
            places = [place for place, found in enumerate(numbers) if found == number]
            splits[name].append([places[0], places[-1]] if places else [-1, -1])
    return splits


@pytest.mark.parametrize("shares", [(48, 1, 1), (8, 1, 1), (2, 1, 1), (1, 0, 0), (3, 0, 1), (3, 1, 0)])
@pytest.mark.parametrize("span", [4, 50, 10**6])
def test_against_brute_force(shares, span):
    rng = np.random.default_rng(span)
    for users in (1, 2, 13):
        lengths = rng.integers(1, 20, users)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        times = np.concatenate([np.sort(rng.integers(0, span, n)) for n in lengths]) * 8  # quantiles of .25 are exact
        got = split_by_time(times, offsets, shares)
        assert {name: ends.tolist() for name, ends in got.items()} == brute(times.tolist(), offsets.tolist(), shares)
        assert all(ends.dtype == np.int32 for ends in got.values())


def test_one_interaction():
    got = split_by_time(np.array([5]), np.array([0, 1]))
    assert {name: ends.tolist() for name, ends in got.items()} == {
        "train": [[0, 0]],
        "val": [[-1, -1]],
        "test": [[-1, -1]],
    }


def test_equal_times_stay_together():
    times = np.array([1] * 95 + [2] * 5)
    got = split_by_time(times, np.array([0, 100]))
    assert got["train"].tolist() == [[0, 99]]  # the 96th hundredth falls among the twos, so all of them are train


@pytest.mark.parametrize("shares", [(0, 1, 1), (-1, 1, 1), (1, -1, 1), (1, float("nan"), 1), (float("inf"), 1, 1)])
def test_shares_that_are_none(shares):
    with pytest.raises(ValueError, match="shares: expected"):
        split_by_time(np.arange(4), np.array([0, 4]), shares)


@pytest.mark.parametrize("seed", range(20))
def test_the_last_of_each_user_are_left_out(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, rng.integers(1, 12))
    got = leave_one_out(np.concatenate([[0], np.cumsum(lengths)]))
    none = [-1, -1]
    assert {name: ends.tolist() for name, ends in got.items()} == {
        "train": [[0, n - 3] if n >= 3 else [0, n - 1] for n in lengths],
        "val": [[n - 2, n - 2] if n >= 3 else none for n in lengths],
        "test": [[n - 1, n - 1] if n >= 3 else none for n in lengths],
    }
    assert all(ends.dtype == np.int32 for ends in got.values())
