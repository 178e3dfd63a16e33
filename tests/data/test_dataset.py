# SPDX-License-Identifier: Apache-2.0
"""Samples of a split against a loop over the definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchrec_fast.data import Dataset


def by_definition(dataset, name, max_items, min_position):
    """The history of the target at position i is items[max(0, i - K):i]."""
    histories, targets = [], []
    for user, (first, last) in enumerate(dataset.splits[name].tolist()):
        items = dataset.items[dataset.offsets[user] : dataset.offsets[user + 1]].tolist()
        if first == -1:
            continue
        for i in range(first, last + 1):
            if i >= min_position:
                histories.append(items[max(0, i - (max_items or i)) : i])
                targets.append(items[i])
    return histories, targets


@st.composite
def datasets(draw):
    lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=6))
    ends = []
    for n in lengths:
        first = draw(st.integers(-1, n - 1))
        ends.append((first, -1 if first == -1 else draw(st.integers(first, n - 1))))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = np.random.default_rng(len(lengths)).permutation(offsets[-1]).astype(np.int32)
    splits = {"test": np.array(ends, np.int32)}
    return Dataset(items, offsets, {int(i): f"t{i}" for i in items}, splits)


@given(datasets(), st.none() | st.integers(1, 13), st.integers(1, 5))
def test_split(dataset, max_items, min_position):
    (flat, offsets), targets = dataset.split("test", max_items, min_position)
    histories, wanted = by_definition(dataset, "test", max_items, min_position)
    assert targets.tolist() == wanted
    assert offsets[0] == 0
    assert offsets[-1] == len(flat)
    assert [h.tolist() for h in np.split(flat, offsets[1:-1])][: len(wanted)] == histories
    assert flat.dtype == targets.dtype == np.int32
    assert offsets.dtype == np.int64


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "dev"}, r"name: expected one of \['test'\], got 'dev'"),
        ({"name": "test", "max_items": 0}, "max_items: expected at least 1, got 0"),
        ({"name": "test", "min_position": 0}, "min_position: expected at least 1, got 0"),
    ],
)
def test_bad_requests(given, message):
    dataset = Dataset(np.array([1], np.int32), np.array([0, 1]), {1: "a"}, {"test": np.array([[0, 0]], np.int32)})
    with pytest.raises(ValueError, match=message):
        dataset.split(**given)
