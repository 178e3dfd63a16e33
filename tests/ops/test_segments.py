# SPDX-License-Identifier: Apache-2.0
"""Segments: positions and ranges against a loop over rows, and what is not a forest."""

import itertools
import random
from dataclasses import replace

import pytest
import torch

from patchrec_fast.ops.attention import Segments


def of(ends, parent, visible):
    return Segments.of(torch.tensor(ends), torch.tensor(parent), torch.tensor(visible))


def test_positions_and_ranges_of_random_forests():
    for seed in range(50):
        rng = random.Random(seed)
        lengths = [rng.randint(1, 6) for _ in range(rng.randint(1, 12))]
        ends = [0, *itertools.accumulate(lengths)]
        parent = [rng.randint(-1, s - 1) for s in range(len(lengths))]
        visible = [0 if p < 0 else rng.randint(1, lengths[p]) for p in parent]
        segments = of(ends, parent, visible)
        seen, depths = {}, []  # by row: the rows that it sees
        for s, p in enumerate(parent):
            before = [] if p < 0 else seen[ends[p] + visible[s] - 1]
            depths.append(0 if p < 0 else depths[p] + 1)
            for row in range(ends[s], ends[s + 1]):
                seen[row] = [*before, *range(ends[s], row + 1)]
        assert segments.position_ids.tolist() == [len(seen[row]) - 1 for row in range(ends[-1])]
        depth, ranges = segments.ranges()
        assert depth.tolist() == depths
        assert segments.levels == ranges.shape[1] == max(depths) + 1
        assert all(map(torch.equal, replace(segments, levels=None).ranges(), (depth, ranges)))
        for s in range(len(parent)):
            found = [row for low, high in ranges[s].tolist() for row in range(low, high)]
            assert found == seen[ends[s + 1] - 1]
            assert not ranges[s, depths[s] + 1 :].any()


@pytest.mark.parametrize(
    ("ends", "parent", "visible", "message"),
    [
        ([0, 2, 2], [-1, 0], [0, 1], "cu_seqlens: expected to rise from 0, each segment with a row"),
        ([1, 2, 3], [-1, 0], [0, 1], "cu_seqlens: expected to rise from 0"),
        ([0, 2, 3], [-1, 1], [0, 1], "parent: expected an earlier segment or -1, got 1 for segment 1"),
        ([0, 2, 3], [1, 0], [1, 1], "parent: expected an earlier segment or -1, got 1 for segment 0"),
        ([0, 2, 3], [-2, 0], [0, 1], "got -2 for segment 0"),
        ([0, 2, 3], [-1, 0], [0, 3], "visible: got 3 for segment 1, expected 1 to the 2 rows of its parent"),
        ([0, 2, 3], [-1, 0], [0, 0], "visible: got 0 for segment 1"),
        ([0, 2, 3], [-1, -1], [0, 1], "visible: got 1 for segment 1, expected 0, for it has no parent"),
        ([0], [0], [0], "expected S \\+ 1, S and S numbers"),
        ([0, 2, 3], [-1], [0, 1], "expected S \\+ 1, S and S numbers"),
        ([[0, 2]], [-1], [0], "cu_seqlens: expected one dimension"),
    ],
)
def test_what_is_not_a_forest(ends, parent, visible, message):
    with pytest.raises(ValueError, match=message):
        of(ends, parent, visible)


def test_numbers_that_are_no_integers():
    with pytest.raises(TypeError, match=r"visible: expected integers, got torch\.float32"):
        of([0, 2], [-1], [0.0])


def test_a_copy_has_its_own_tensors():
    segments = of([0, 2, 3], [-1, 0], [0, 1])
    segments.kept["mask"] = 1
    assert len(segments) == 2
    assert segments.to("cpu").levels == 2
    assert not segments.to("cpu").kept
