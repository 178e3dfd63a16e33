# SPDX-License-Identifier: Apache-2.0
"""Whose sample each is: against the split itself."""

from dataclasses import replace

import numpy as np
import pytest

from patchrec_fast import data
from patchrec_fast.evaluation.samples import identity, users_of
from patchrec_fast.layout.histories import checked


def true_users(dataset, split):
    """The same split of a dataset whose items are their users' numbers."""
    owner = np.repeat(np.arange(len(dataset), dtype=np.int32), np.diff(dataset.offsets))
    named = replace(dataset, items=owner, titles=dict.fromkeys(range(len(dataset)), "a user"))
    return np.unique(named.split(split).targets, return_inverse=True)[1]


@pytest.mark.parametrize("max_items", [1, 2, 50, None])
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_generated_sample(sample, split, max_items):
    found = users_of(*checked(*sample.split(split, max_items)))
    assert found.tolist() == true_users(sample, split).tolist()


@pytest.mark.parametrize("name", ["ml-100k", "ml-1m", "goodreads"])
def test_the_real_test_splits(data_dir, name):
    dataset = data.load(data_dir / name)
    found = users_of(*checked(*dataset.split("test")))
    assert found.tolist() == true_users(dataset, "test").tolist()


@pytest.mark.parametrize(
    ("histories", "targets", "users"),
    [
        ([[1, 2]], [3], [0]),
        ([[1, 2], [1, 2, 3]], [3, 4], [0, 0]),
        ([[1, 2], [2, 3]], [3, 4], [0, 0]),  # cut to two items
        ([[1, 2], [1, 2, 4]], [3, 4], [0, 1]),  # another target
        ([[1, 2], [9, 2, 3]], [3, 4], [0, 1]),  # another past
        ([[1, 2], [0, 1, 2, 3]], [3, 4], [0, 1]),  # longer by two
        ([[0], [1, 2], [0, 1, 2, 3]], [9, 3, 4], [0, 1, 2]),  # the same, where the sample before holds what is more
        ([[1, 2], [3]], [3, 4], [0, 0]),
        ([[5], [5], [5, 6]], [6, 6, 7], [0, 1, 1]),
    ],
)
def test_by_hand(histories, targets, users):
    assert users_of(*checked(histories, targets)).tolist() == users


def test_identity_is_of_targets_and_newest_items():
    def of(histories, targets):
        return identity(*checked(histories, targets))

    first = of([[1, 2], [3, 4]], [5, 6])
    assert of([[2], [9, 9, 4]], [5, 6]) == first
    assert of([[1, 2], [3, 4]], [5, 7]) != first
    assert of([[1, 2], [3, 3]], [5, 6]) != first
    assert of([[3, 4], [1, 2]], [6, 5]) != first
    assert of([[1, 2]], [5]) != first
