# SPDX-License-Identifier: Apache-2.0
"""The radix tree of lists of codes against one of nested dicts."""

import numpy as np
import pytest

from patchrec_fast.layout import tree
from patchrec_fast.ragged import to_offsets


def units_of(codes, joins):
    """A list of codes cut where it may be cut: tuples."""
    made = []
    for code, join in zip(codes, joins, strict=True):
        if join:
            made[-1] = (*made[-1], code)
        else:
            made.append((code,))
    return made


def distinct(lists, size=len):
    """How much all lists have, each beginning that two share counted once, the last units for each."""
    root, total = {}, 0
    for units in lists:
        node = root
        for unit in units[:-1]:
            if unit not in node:
                node[unit] = {}
                total += size(unit)
            node = node[unit]
        total += size(units[-1])
    return total


def check(lists, joins):
    """Every promise of `Tree`."""
    lengths = np.array([len(each) for each in lists])
    flat, joined = (np.concatenate(part) for part in (lists, joins))
    grown = tree.grow(flat.astype(np.int64), to_offsets(lengths), joined.astype(bool))
    source, begin, end, parent, visible, leaves = (part.tolist() for part in grown)
    count = len(source)
    own = [lists[a][b:c] for a, b, c in zip(source, begin, end, strict=True)]
    assert all(own)
    seen = []  # what each segment sees before it
    for s in range(count):
        assert -1 <= parent[s] < s
        if parent[s] < 0:
            assert begin[s] == visible[s] == 0
            seen.append([])
            continue
        assert 1 <= visible[s] <= len(own[parent[s]])
        seen.append(seen[parent[s]] + own[parent[s]][: visible[s]])
        assert len(seen[s]) == begin[s]
    for b, (codes, flags) in enumerate(zip(lists, joins, strict=True)):
        leaf = leaves[b]
        assert source[leaf] == b
        assert seen[leaf] + own[leaf] == codes
        s = leaf
        while s >= 0:  # no list is cut where it must not be
            assert not flags[begin[s]]
            s = parent[s]
    assert len(set(leaves)) == len(lists)
    assert not set(leaves) & set(parent)  # each list's own
    assert sum(map(len, own)) == distinct([units_of(c, j) for c, j in zip(lists, joins, strict=True)], len)
    # a segment's rows and all below it are contiguous: each comes after its parent, or after something below that
    for s in range(1, count):
        above = s - 1
        while above >= 0 and above != parent[s]:
            above = parent[above]
        assert above == parent[s]
    return grown


def drawn(rng):
    """Lists that begin alike: cuts of a few sequences, with ends of their own."""
    few = rng.integers(1, 4)
    joins_at_all = rng.random() < 0.5
    bases = [rng.integers(1, 4, 40) for _ in range(few)]
    lists, joins = [], []
    for _ in range(rng.integers(1, 14)):
        base = bases[rng.integers(few)]
        codes = np.append(base[: rng.integers(0, rng.choice([3, 12, 40]))], rng.integers(1, 4, rng.integers(1, 4)))
        flags = (codes == 3) & joins_at_all & (rng.random(len(codes)) < 0.7)
        flags[[0, -1]] = False
        lists.append((codes + 100 * flags).tolist())
        joins.append(flags.tolist())
    return lists, joins


@pytest.mark.parametrize("seed", range(8))
def test_any_lists(seed):
    rng = np.random.default_rng(seed)
    for _ in range(250):
        check(*drawn(rng))


def test_shapes_with_names():
    plain = lambda lists: check(lists, [[False] * len(each) for each in lists])  # noqa: E731
    alone = plain([[5, 6, 7]])
    assert alone.parent.tolist() == [-1]
    assert plain([[1, 2], [2, 1], [3]]).parent.tolist() == [-1] * 3
    same = plain([[1, 2, 3]] * 4)
    assert same.parent.tolist() == [-1, 0, 0, 0, 0]
    assert same.visible.tolist() == [0, 2, 2, 2, 2]
    # one user's targets: a trunk with a leaf at every place, not a chain
    growing = plain([[*range(1, n + 1), 50, 60 + n] for n in range(1, 40)])
    assert growing.parent.max() == 0
    assert len(growing.parent) == 40


def test_many_lists_on_one_beginning():
    lists = [[*range(1, 30), 100 + n, 7] for n in range(1000)]
    grown = check(lists, [[False] * 31] * 1000)
    assert grown.parent.tolist() == [-1] + [0] * 1000


def test_a_segment_goes_on_into_the_child_with_the_most_lists():
    lists = [[1, code, 10 + n, 7] for code, count in ((2, 2), (3, 4), (4, 3)) for n in range(count)]
    grown = check(lists, [[False] * 4] * len(lists))
    assert lists[grown.source[0]][grown.begin[0] : grown.end[0]] == [1, 3]
    assert np.bincount(grown.parent[1:]).max() == 6  # four leaves and the two other children


def test_the_first_of_equal_children_goes_on():
    lists = [[1, code, 10 + n, 7] for code in (4, 2, 3) for n in range(3)]
    grown = check(lists, [[False] * 4] * len(lists))
    assert lists[grown.source[0]][grown.begin[0] : grown.end[0]] == [1, 2]
