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


def grow(codes: NDArray[np.int64], offsets: NDArray[np.int64], joins: int) -> Tree:
    """The segments of the radix tree along heavy paths.

    Every beginning that two lists share is one segment's, except each list's last code. A segment goes on into the
    child with the most lists below; the others hang off it. Each list ends in a segment of its own.

    Args:
        codes, offsets, joins: as `sort` takes them; B is at least 1.

    Returns:
        Tree.
    """
    order, cut = sort(codes, offsets, joins)
    nodes = _nodes(cut.tolist())
    from_depth = np.append(nodes.depth, 0)  # of node -1, none: 0
    heads = np.flatnonzero(nodes.tip != np.append(nodes.tip, -1)[nodes.up])  # where the heavy paths begin
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
    path = np.full((2, len(nodes.tip) + 1), [[-1], [0]])  # (2, M + 1) by a path's tip: its segment, where that begins
    path[:, tips] = place[: len(heads)], begin[: len(heads)]
    path = path[:, np.append(nodes.tip, -1)]  # and by any node of it
    leaves = np.empty_like(order)
    leaves[order] = place[len(heads) :]
    parent, starts = path[:, above]
    return Tree(
        source=source[depth_first],
        begin=begin[depth_first],
        end=end[depth_first],
        parent=parent[depth_first],
        visible=(begin - starts)[depth_first],
        leaves=leaves,
    )


def sort(
    codes: NDArray[np.int64], offsets: NDArray[np.int64], joins: int, groups: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The lists in lexicographic order, and what each begins with like the one before.

    Args:
        codes: (P,) at least 1, the lists one after another; equal means alike.
        offsets: (B + 1,) where each list starts; none is empty.
        joins: codes from here on are one with the code before them, so that no list is cut between the two; never the
            first of a list.
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
        stays = np.append(alike, False) | np.append(False, alike)
        active, group = active[stays], np.append(0, (~alike).cumsum())[stays]
        depth, width = depth + width, 2 * width
    joined = codes >= joins
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
    nodes: list[list[int]] = []  # start, stop, depth, up, tip, and the lists of its largest child
    around, depths, at = [-1], [0], []  # the nodes around a place, the outermost first

    def enter(start: int, depth: int) -> None:
        around.append(len(nodes))
        depths.append(depth)
        nodes.append([start, 0, depth, -1, len(nodes), 0])

    for place, depth in enumerate(cut):
        while depths[-1] > depth:
            inner = nodes[around.pop()]
            depths.pop()
            if depths[-1] < depth:
                enter(inner[0], depth)
            inner[1], inner[3] = place, around[-1]
            size = place - inner[0]
            if around[-1] >= 0 and size > (outer := nodes[around[-1]])[5]:
                outer[4], outer[5] = inner[4], size
        if depths[-1] < depth:
            enter(place - 1, depth)
        at.append(around[-1])  # that of `depth`, or none where that is 0
    start, stop, up_to, up, tip, _ = np.array(nodes, np.int64).reshape(-1, 6).T
    return _Nodes(start, stop, up_to, up, tip, np.array(at, np.int64))
