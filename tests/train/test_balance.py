# SPDX-License-Identifier: Apache-2.0
"""Dealing samples to steps and micro-batches, against what it promises."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchrec_fast.train.balance import balanced, fill, split_by_count


def batches(rows, starts, parts):
    """Every micro-batch as a list of sample numbers, dealt as the module says in words."""
    made = []
    for first, last in itertools.pairwise(starts):
        order, counts = balanced(rows[first:last], parts)
        assert sorted(order) == list(range(last - first))
        made += [list(part + first) for part in np.split(order, np.cumsum(counts)[:-1])]
    return made


@settings(deadline=None, max_examples=200)
@given(samples=st.integers(1, 200), parts=st.integers(1, 9), most=st.integers(1, 7))
def test_steps_by_count(samples, parts, most):
    if samples < parts:
        return
    starts = split_by_count(samples, parts, most)
    made = batches(np.ones(samples, int), starts, parts)
    sizes = [len(batch) for batch in made]
    left_out = samples - sum(sizes)
    assert min(sizes) >= 1
    assert max(sizes) <= most
    assert len(sizes) % parts == 0
    assert np.ptp(np.diff(starts)) <= 1
    assert left_out == (samples % parts if most == 1 else 0)
    assert len(made) == parts * max(1, -(-(samples - left_out) // (parts * most))), "no more steps than needed"


@settings(deadline=None, max_examples=300)
@given(rows=st.lists(st.integers(1, 30), min_size=1, max_size=120), parts=st.integers(1, 6), most=st.integers(30, 90))
def test_steps_by_rows(rows, parts, most):
    rows = np.array(rows)
    if len(rows) < parts:
        return
    made = batches(rows, fill(rows, parts, most), parts)
    dealt = [sample for batch in made for sample in batch]
    assert sorted(dealt) == list(range(len(dealt))), "each once, the left out ones last"
    assert len(rows) - len(dealt) < parts
    assert all(0 < rows[batch].sum() <= most for batch in made)
    assert len(made) % parts == 0


def test_a_last_step_too_small_takes_from_the_one_before():
    rows = np.full(9, 10)  # greedily: steps of 8 and 1
    assert fill(rows, 2, 40).tolist() == [0, 7, 9]
    assert fill(np.full(9, 10), 4, 20).tolist() == [0, 5, 9]


def test_what_cannot_be_dealt_is_left_out():
    assert fill(np.full(9, 10), 4, 10).tolist() == [0, 4, 8]
    assert split_by_count(9, 4, 1).tolist() == [0, 4, 8]


def test_a_budget_is_used():
    rows = np.random.default_rng(0).integers(80, 500, 2000)
    for parts in (1, 2, 8):
        starts = fill(rows, parts, 8192)
        used = [rows[batch].sum() / 8192 for batch in batches(rows, starts[:-1], parts)]
        assert np.mean(used) > 0.93
        assert np.mean(used) <= 1


@pytest.mark.parametrize("parts", [2, 8])
def test_parts_are_nearly_equal(parts):
    rows = np.random.default_rng(0).integers(80, 500, 16 * parts)
    order, counts = balanced(rows, parts)
    loads = [part.sum() for part in np.split(rows[order], np.cumsum(counts)[:-1])]
    unsorted = rows.reshape(parts, -1).sum(1)
    assert max(loads) / np.mean(loads) < 1.03
    assert max(unsorted) / np.mean(unsorted) > 1.03, "the test could not fail"


def test_few_samples_by_hand():
    order, counts = balanced(np.array([5, 9, 1, 7, 3]), 2)
    parts = np.split(order, np.cumsum(counts)[:-1])
    assert [list(part) for part in parts] == [[1, 4, 2], [3, 0]]  # 9 | 7 5 | 3 1
