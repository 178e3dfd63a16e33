# SPDX-License-Identifier: Apache-2.0
"""What lists of codes begin with alike: their radix tree, cut into segments.

The lists are sorted, and neighbours' common beginnings say everything: a node of the radix tree is a run of lists whose
neighbours share at least so many codes, as large a run as there is. No loop runs over codes: one goes once through the
sorted lists, the others through levels that double.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_FIRST_CHUNK = 8  # codes that are compared at first, at least


class Tree(NamedTuple):
    """S segments, parents before children, and everything below a segment right behind it.

    List b, without what is not shared, is the codes of segment `leaves[b]` behind those that the segment sees: the
    first `visible` of its parent's and what the parent sees.
    """

    source: NDArray[np.int64]  # (S,) a list whose codes `begin` to `end - 1` are the segment's
    begin: NDArray[np.int64]  # (S,)
    end: NDArray[np.int64]  # (S,)
    parent: NDArray[np.int64]  # (S,) -1 for a root
    visible: NDArray[np.int64]  # (S,) codes of the parent that are seen; 0 for a root
    leaves: NDArray[np.int64]  # (B,)


class _Nodes(NamedTuple):
    """M inner nodes of the radix tree: what two lists or more begin with."""

    start: NDArray[np.int64]  # (M,) its lists are `start` to `stop - 1` of the sorted ones
    stop: NDArray[np.int64]  # (M,)
    depth: NDArray[np.int64]  # (M,) codes that they share
    up: NDArray[np.int64]  # (M,) the smallest node around; -1 for none
    tip: NDArray[np.int64]  # (M,) where the heavy path that it is on ends
    at: NDArray[np.int64]  # (B + 1,) the node whose depth is the common beginning of neighbours; -1 where that is none


def grow(codes: NDArray[np.int64], offsets: NDArray[np.int64], joined: NDArray[np.bool_]) -> Tree:
    """The segments of the radix tree along heavy paths.

    Every beginning that two lists share is one segment's, except each list's last code. A segment goes on into the
    child with the most lists below, the first of several; the others hang off it. Each list ends in a segment of its
    own.

    Args:
        codes, offsets, joined: as `sort` takes them; B is at least 1. Codes that join are above those that do not.

    Returns:
        Tree.
    """
    order, cut = sort(codes, offsets, joined)
    nodes = _nodes(cut.tolist())
    from_depth, tip_of = np.append(nodes.depth, 0), np.append(nodes.tip, -1)  # of node -1, none: 0 and none
    heads = np.flatnonzero(nodes.tip != tip_of[nodes.up])  # where the heavy paths begin
    tips = nodes.tip[heads]
    users = np.arange(len(order))
    deepest = np.where(cut[:-1] >= cut[1:], nodes.at[:-1], nodes.at[1:])  # (B,) the node that each list leaves last

    above = np.concatenate([nodes.up[heads], deepest])  # (S,) of paths, then of leaves: the node that they hang off
    first = np.concatenate([nodes.start[heads], users])
    size = np.concatenate([(nodes.stop - nodes.start)[heads], np.ones_like(users)])
    source = order[np.concatenate([nodes.start[tips], users])]
    begin = from_depth[above]
    end = np.concatenate([nodes.depth[tips], np.diff(offsets)[order]])

    depth_first = np.lexsort((-size, first))  # (S,)
    place = np.empty_like(depth_first)
    place[depth_first] = np.arange(len(place))
    segment, starts = np.full_like(tip_of, -1), np.zeros_like(tip_of)  # by a path's tip
    segment[tips], starts[tips] = place[: len(heads)], begin[: len(heads)]
    below = tip_of[above]  # (S,) the tip of the path that each hangs off
    leaves = np.empty_like(order)
    leaves[order] = place[len(heads) :]
    return Tree(
        source=source[depth_first],
        begin=begin[depth_first],
        end=end[depth_first],
        parent=segment[below][depth_first],
        visible=(begin - starts[below])[depth_first],
        leaves=leaves,
    )


def sort(
    codes: NDArray[np.int64],
    offsets: NDArray[np.int64],
    joined: NDArray[np.bool_],
    groups: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The lists in lexicographic order, and what each begins with like the one before.

    Args:
        codes: (P,) at least 1, the lists one after another; equal means alike.
        offsets: (B + 1,) where each list starts; none is empty.
        joined: (P,) whether a code is one with that before it, so that no list is cut between the two; never the first
            of a list. Where such codes are not above all others, lists may seem to begin with less alike than they do.
        groups: (B,) not falling, at least 0: lists of different groups count as different from the first code on.

    Returns:
        (B,) int64, the lists in order, those of a group together, without their last codes: lists that differ there
        alone stay as they were. (B + 1,) int64, the codes that each may share with the one before; 0 at both ends.
    """
    shared = np.diff(offsets) - 1  # (B,) the codes of a list without its last
    order, common = np.arange(len(shared)), np.zeros(len(shared) + 1, np.int64)
    active = order.copy()  # places in the order whose lists are alike so far, in `group` with those they are like
    group = np.zeros_like(order) if groups is None else groups
    # Lists of nearly equal lengths are compared whole, others in chunks that take no more memory than twice the codes.
    depth, width = 0, max(_FIRST_CHUNK, min(int(shared.max()), 2 * len(codes) // len(shared)))
    while len(active) > 1:
        lists, columns = order[active], np.arange(width)
        chunk = np.empty((len(lists), 1 + width), np.int64)
        chunk[:, 0] = group
        values = codes.take((offsets[lists] + depth)[:, None] + columns, mode="clip")
        np.multiply(values, columns < (shared[lists] - depth)[:, None], out=chunk[:, 1:])
        keys = chunk.astype(">i8")  # big-endian: bytes in the order of numbers
        rank = keys.view(f"V{keys.itemsize * (1 + width)}").ravel().argsort(kind="stable")
        chunk, lists = chunk[rank], lists[rank]
        order[active] = lists
        differ = chunk[1:] != chunk[:-1]  # (A - 1, 1 + width)
        at = differ.argmax(axis=1)
        alike = ~differ[np.arange(len(at)), at]
        at[alike] = 1 + width
        counts = np.minimum(depth + at - 1, shared[lists[1:]])
        common[active[1:]] = np.where(at == 0, common[active[1:]], counts)  # 0: the groups differ
        alike &= shared[lists[1:]] >= depth + width  # lists that have ended together are done
        if not alike.any():
            break
        stays = np.append(alike, False) | np.append(False, alike)
        active, group = active[stays], np.append(0, (~alike).cumsum())[stays]
        depth, width = depth + width, 2 * width
    return order, _uncut(common, order, offsets, joined) if joined.any() else common


def _uncut(
    common: NDArray[np.int64], order: NDArray[np.int64], offsets: NDArray[np.int64], joined: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """`common`, less the codes that one of the two lists joins with what follows."""
    whole = np.maximum.accumulate(np.where(joined, 0, np.arange(len(joined))))  # (P,) the last place that joins nothing
    starts = offsets[:-1][order]  # (B,)
    inner = common[1:-1]
    common[1:-1] = np.minimum(*(whole[each + inner] - each for each in (starts[:-1], starts[1:])))
    return common


def _nodes(cut: list[int]) -> _Nodes:
    """The nodes of sorted lists that share `cut` (B + 1,) codes with the one before; 0 at both ends."""
    made: list[list[int]] = [[] for _ in range(7)]
    start, stop, depth, up, tip, at, largest = made  # the last: (M,) the lists of the largest child so far
    around, depths = [-1], [0]  # the nodes around a place and their depths, outermost first

    def enter(place: int, codes: int) -> None:
        around.append(len(start))
        depths.append(codes)
        tip.append(len(start))
        start.append(place)
        stop.append(0)
        depth.append(codes)
        up.append(-1)
        largest.append(0)

    for place, codes in enumerate(cut):
        while depths[-1] > codes:
            depths.pop()
            inner = around.pop()
            if depths[-1] < codes:
                enter(start[inner], codes)
            outer = around[-1]
            stop[inner], up[inner] = place, outer
            if outer >= 0 and (size := place - start[inner]) > largest[outer]:
                largest[outer], tip[outer] = size, tip[inner]
        if depths[-1] < codes:
            enter(place - 1, codes)
        at.append(around[-1])  # that of depth `codes`, or none
    return _Nodes(*(np.array(values, np.int64) for values in made[:-1]))
