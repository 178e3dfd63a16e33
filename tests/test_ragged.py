# SPDX-License-Identifier: Apache-2.0
"""Ragged arithmetic against lists of lists."""

from itertools import pairwise

import numpy as np
import pytest

from patchrec_fast.ragged import Ragged, counting, to_offsets


def lists(ragged):
    values, offsets = (part.tolist() for part in ragged)
    assert offsets[0] == 0
    assert offsets[-1] == len(values)
    return [values[a:b] for a, b in pairwise(offsets)]


@pytest.mark.parametrize("seed", range(20))
def test_against_lists(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 5, rng.integers(1, 9))
    offsets = to_offsets(lengths).astype(rng.choice([np.int32, np.int64]))
    ragged = Ragged(rng.integers(0, 100, lengths.sum()), offsets)
    expected = lists(ragged)
    assert ragged.lengths.tolist() == lengths.tolist()
    first, last = sorted(rng.integers(0, len(lengths) + 1, 2))
    assert lists(ragged.slice(first, last)) == expected[first:last]
    assert lists(ragged.slice(first, 99)) == expected[first:]
    places = rng.integers(0, len(lengths), 6)
    assert lists(ragged.take(places)) == [expected[place] for place in places]
    counts = rng.integers(0, lengths + 1)
    assert lists(ragged.newest(counts)) == [part[len(part) - n :] for part, n in zip(expected, counts, strict=True)]
    assert ragged.owners().tolist() == [s for s, part in enumerate(expected) for _ in part]


def test_counting():
    starts, counts = np.array([5, 0, 7]), np.array([2, 0, 3])
    assert counting(starts, counts).tolist() == [5, 6, 7, 8, 9]
    assert counting(starts, counts, step=-1, dtype=np.int32).tolist() == [5, 4, 7, 6, 5]
    assert counting(1, counts).tolist() == [1, 2, 1, 2, 3]
    assert counting(np.empty(0, np.int64), np.empty(0, np.int64)).tolist() == []
