# SPDX-License-Identifier: Apache-2.0
"""What lists of codes begin with alike: their radix tree, cut into segments.

The lists are sorted, and neighbours' common beginnings say everything: a node of the radix tree is a run of lists whose
neighbours share at least so many codes, as large a run as there is. No loop runs over lists or codes, only over
levels that halve or double.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..ragged import counting

_FIRST_CHUNK = 8  # codes that are compared at first: most lists differ early
_JOINS = 1 << 62


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
    """M inner nodes of the radix tree, each before those inside it: what two lists or more begin with."""

    start: NDArray[np.int64]  # (M,) its lists are `start` to `stop - 1` of the sorted ones
    stop: NDArray[np.int64]  # (M,)
    depth: NDArray[np.int64]  # (M,) codes that they share
    up: NDArray[np.int64]  # (M,) the smallest node around; -1 for none
    at: NDArray[np.int64]  # (B + 1,) the node whose depth is the common beginning of neighbours; -1 where that is none


def grow(codes: NDArray[np.int64], offsets: NDArray[np.int64], joins: NDArray[np.bool_]) -> Tree:
    """The segments of the radix tree along heavy paths.

    Every beginning that two lists share is one segment's, except each list's last code. A segment goes on into the
    child with the most lists below; the others hang off it. Each list ends in a segment of its own.

    Args:
        codes: (P,) from 1 to 2**62 - 1, the lists one after another; equal means alike.
        offsets: (B + 1,) where each list starts; none is empty, and B is at least 1.
        joins: (P,) whether a code is one with that before it, so that no list is cut between the two; never the
            first of a list. Alike codes have it alike, unless the code before them differs.

    Returns:
        Tree.
    """
    order, cut = _sorted(codes, offsets, joins)
    nodes = _nodes(cut)
    users, size = np.arange(len(order)), nodes.stop - nodes.start
    head = _heads(nodes.up, size)  # (M,)
    from_depth = np.append(nodes.depth, 0)  # of node -1, none: 0

    heads = np.flatnonzero(head == np.arange(len(head)))
    tip = np.zeros(len(head), np.int64)
    np.maximum.at(tip, head, np.arange(len(head)))  # the innermost node of a path has the largest number
    tip = tip[heads]
    deepest = np.where(cut[:-1] >= cut[1:], nodes.at[:-1], nodes.at[1:])  # (B,) the node that each list leaves last

    above = np.concatenate([nodes.up[heads], deepest])  # (S,) paths, then leaves
    first = np.concatenate([nodes.start[heads], users])
    width = np.concatenate([size[heads], np.ones_like(users)])
    source = order[np.concatenate([nodes.start[tip], users])]
    begin = from_depth[above]
    end = np.concatenate([nodes.depth[tip], np.diff(offsets)[order]])

    depth_first = np.lexsort((-width, first))  # (S,)
    place = np.empty_like(depth_first)
    place[depth_first] = np.arange(len(place))
    path = np.full(len(head) + 1, -1)  # (M + 1,) of a node: its segment, and where that begins
    path[heads] = place[: len(heads)]
    path[:-1] = path[head]
    starts = np.append(from_depth[np.append(nodes.up, -1)[head]], 0)
    leaves = np.empty_like(order)
    leaves[order] = place[len(heads) :]
    return Tree(
        source=source[depth_first],
        begin=begin[depth_first],
        end=end[depth_first],
        parent=path[above][depth_first],
        visible=(begin - starts[above])[depth_first],
        leaves=leaves,
    )


def _sorted(
    codes: NDArray[np.int64], offsets: NDArray[np.int64], joins: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The lists in lexicographic order, (B,), and what each shares with the one before, (B + 1,): 0 at both ends.

    Codes that join come after those that do not, so that lists that may be cut at one place stand together.
    """
    shared = np.diff(offsets) - 1  # (B,) the codes of a list without its last
    order, common = np.arange(len(shared)), np.zeros(len(shared) + 1, np.int64)
    keys = codes + joins * _JOINS
    active = order.copy()  # places in the order whose lists are alike so far, in `group` with those they are like
    group = np.zeros_like(order)
    depth, width = 0, _FIRST_CHUNK
    while len(active) > 1:
        lists = order[active]
        taken = (shared[lists] - depth).clip(0, width)
        chunk = np.zeros((len(lists), 1 + width), ">i8")  # big-endian: bytes in the order of numbers
        chunk[:, 0] = group
        values = keys[counting(offsets[lists] + depth, taken)]
        chunk.ravel()[counting(1 + (1 + width) * np.arange(len(lists)), taken)] = values
        rank = chunk.view(f"V{chunk.itemsize * (1 + width)}").ravel().argsort(kind="stable")
        chunk, lists = chunk[rank], lists[rank]
        order[active] = lists
        differ = chunk[1:] != chunk[:-1]  # (A - 1, 1 + width)
        alike = ~differ.any(axis=1)
        at = np.where(alike, width, differ.argmax(axis=1) - 1)  # -1 where the groups differ
        common[active[1:]] = np.where(at < 0, common[active[1:]], np.minimum(depth + at, shared[lists[1:]]))
        goes_on = shared[lists] >= depth + width
        alike &= goes_on[1:]  # lists that have ended together are done
        stays = np.append(alike, False) | np.append(False, alike)
        active, group = active[stays], np.append(0, (~alike).cumsum())[stays]
        depth, width = depth + width, 2 * width
    return order, _uncut(common, order, offsets, joins)


def _uncut(
    common: NDArray[np.int64], order: NDArray[np.int64], offsets: NDArray[np.int64], joins: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """`common`, less the codes that one of the two lists joins with what follows."""
    places = np.arange(len(joins))
    whole = np.maximum.accumulate(np.where(joins, 0, places))  # (P,) the last place at or before that joins nothing
    starts = offsets[:-1][order]  # (B,)
    inner = common[1:-1]
    common[1:-1] = np.minimum(*(whole[each + inner] - each for each in (starts[:-1], starts[1:])))
    return common


def _nodes(cut: NDArray[np.int64]) -> _Nodes:
    """The nodes of sorted lists that share `cut` (B + 1,) codes with the one before; 0 at both ends."""
    inner = np.flatnonzero(cut)
    left, right = _smaller(cut, inner)
    key = left * (cut.max() + 1) + cut[inner]
    _, chosen, node = np.unique(key, return_index=True, return_inverse=True)
    at = np.full(len(cut), -1)
    at[inner] = node
    start, stop = left[chosen], right[chosen]
    up = np.where(cut[start] >= cut[stop], at[start], at[stop])
    return _Nodes(start, stop, cut[inner[chosen]], up, at)


def _smaller(values: NDArray[np.int64], places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each place, the nearest places left and right with a smaller value; there are such."""
    least = [values]  # least[k][i] of values[i : i + 2**k]
    while len(least[-1]) > 1 << (len(least) - 1):
        half = 1 << (len(least) - 1)
        least.append(np.minimum(least[-1][:-half], least[-1][half:]))
    mine = values[places]
    left, right = places.copy(), places + 1  # all of values[left:right] are at least `mine`
    for level in range(len(least) - 1, -1, -1):
        size, table = 1 << level, least[level]
        further = left - size
        left = np.where((further >= 0) & (table[further.clip(min=0)] >= mine), further, left)
        further = right + size
        inside = further <= len(values)
        right = np.where(inside & (table[np.where(inside, right, 0)] >= mine), further, right)
    return left - 1, right


def _heads(up: NDArray[np.int64], size: NDArray[np.int64]) -> NDArray[np.int64]:
    """(M,): the outermost node of the path of each: the largest node in another, the first of several, goes on."""
    order = np.lexsort((-size, up))  # stable: the first stays first
    heavy = up[order] >= 0
    heavy[1:] &= up[order][1:] != up[order][:-1]
    head = np.arange(len(up))
    head[order[heavy]] = up[order[heavy]]
    while (further := head[head]).tolist() != head.tolist():
        head = further
    return head
