# SPDX-License-Identifier: Apache-2.0
"""Which calls of an attention kernel make the attention of a forest, so that no key or value is copied.

A call is a run of queries against a run of keys. Each segment meets itself in a causal call. Each link to a parent is a
call of the rows below it, which lie side by side where the forest is in depth-first order, against the part of the
parent that it shows. Links side by side that show nearly the same go together: one call for what all see, and one with
a mask for the rest, for the kernel is faster with many queries than with those of one leaf.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .segments import check

_SHORT = 64  # rows of short segments whose own rows meet in one masked call: it costs no more than one segment's
_SPREAD = 64  # keys: links go together where what they show differs by no more, or by an eighth

Run = tuple[int, int]
"""The first of some rows or segments and the one after the last."""


class Call(NamedTuple):
    """Queries against keys.

    Attributes:
        queries, keys: rows.
        causal: they are the same rows, and each sees itself and those before it.
        bounds: (2, n) int64, the first key of the call that a query sees and the one after the last; None where all
            are seen, or where the call is causal.
        blind: some query sees none.
    """

    queries: slice
    keys: slice
    causal: bool = False
    bounds: Tensor | None = None
    blind: bool = False


class Schedule(NamedTuple):
    """The calls of a forest of R rows: each row is a query in one of `own`, and then in some of `links`."""

    rows: int
    own: list[Call]
    links: list[Call]


def schedule(cu_seqlens: Tensor, parent: Tensor, visible: Tensor, window: int | None) -> Schedule:
    """Made once a forest: kept by what the tensors hold, so that every layer finds it.

    Raises:
        TypeError, ValueError: as `Segments.of`.
    """
    tensors = (cu_seqlens, parent, visible)
    return _made(*(x.numpy(force=True).astype(np.int64).tobytes() for x in tensors), window)


@lru_cache(maxsize=16)
def _made(cu_seqlens: bytes, parent: bytes, visible: bytes, window: int | None) -> Schedule:
    arrays = [np.frombuffer(each, np.int64).copy() for each in (cu_seqlens, parent, visible)]
    check(*map(torch.from_numpy, arrays))
    forest = _Forest(*(each.tolist() for each in arrays))
    if window is not None and window >= max(forest.begin[s] + forest.rows(s) for s in range(len(forest.parent))):
        window = None
    links = forest.links() if window is None else forest.windowed_links(window)
    return Schedule(forest.first[-1], list(forest.own(window)), list(links))


class _Forest:
    """The forest as lists.

    Attributes:
        first: (S + 1,) the first row of each segment.
        parent, visible: (S,).
        begin: (S,) the position of each segment's first row.
    """

    def __init__(self, first: list[int], parent: list[int], visible: list[int]) -> None:
        self.first, self.parent, self.visible = first, parent, visible
        self.begin: list[int] = []
        for above, seen in zip(parent, visible, strict=True):
            self.begin.append(seen + (self.begin[above] if above >= 0 else 0))

    def rows(self, segment: int) -> int:
        return self.first[segment + 1] - self.first[segment]

    def own(self, window: int | None) -> Iterator[Call]:
        """Each segment against itself; short ones under a parent together."""
        count, s = len(self.parent), 0
        while s < count:
            last = s + 1
            if self.parent[s] >= 0:
                while last < count and self.parent[last] >= 0 and self.first[last + 1] - self.first[s] <= _SHORT:
                    last += 1
            rows = slice(self.first[s], self.first[last])
            slides = window is not None and rows.stop - rows.start > window
            if last - s == 1 and not slides:
                yield Call(rows, rows, causal=True)
            else:
                sizes = np.diff(self.first[s : last + 1])
                row = np.arange(rows.stop - rows.start)
                low = np.repeat(np.asarray(self.first[s:last]) - rows.start, sizes)
                if window is not None:
                    low = np.maximum(low, row - window + 1)
                yield Call(rows, rows, bounds=torch.from_numpy(np.stack([low, row + 1])))
            s = last

    def links(self) -> Iterator[Call]:
        """Each link's rows, all below it included, against what it shows."""
        shown: dict[int, list[tuple[int, int, int]]] = {}  # by parent: the rows of a run and how many they see
        for s, runs in enumerate(self._below()):
            if self.parent[s] >= 0:
                rows = ((self.first[a], self.first[b], self.visible[s]) for a, b in runs)
                shown.setdefault(self.parent[s], []).extend(rows)
        for above, found in shown.items():
            for group in _groups(sorted(found)):
                yield from _calls(self.first[above], *group)

    def _below(self) -> list[list[Run]]:
        """(S,) the segments of each subtree: one run in a forest that is in depth-first order."""
        found: list[list[Run]] = [[(s, s + 1)] for s in range(len(self.parent))]
        for s in reversed(range(len(self.parent))):
            merged: list[Run] = []
            for a, b in sorted(found[s]):
                if merged and merged[-1][1] == a:
                    merged[-1] = (merged[-1][0], b)
                else:
                    merged.append((a, b))
            found[s] = merged
            if self.parent[s] >= 0:
                found[self.parent[s]].extend(merged)
        return found

    def windowed_links(self, window: int) -> Iterator[Call]:
        """Each segment against what it sees of each ancestor: the rows and the keys within the window of any."""
        for s, begin in enumerate(self.begin):
            node = s
            while (above := self.parent[node]) >= 0:
                end = self.begin[node]  # the position after the last key
                start = max(self.begin[above], begin - window + 1)
                if start >= end:
                    break
                n = min(self.rows(s), end - 1 + window - begin)
                low = np.arange(n) + begin - window + 1 - start
                first = self.first[above] - self.begin[above]
                bounds = None if low[-1] <= 0 else _bounds(low.clip(0), np.full(n, end - start))
                yield Call(slice(self.first[s], self.first[s] + n), slice(first + start, first + end), bounds=bounds)
                node = above


def _bounds(low: NDArray[np.int64], high: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(np.stack([low, high]))


Group = tuple[list[Run], list[int]]
"""Runs of rows side by side, and how many keys each sees."""


def _groups(found: list[tuple[int, int, int]]) -> Iterator[Group]:
    """Links of one parent, those together that lie side by side and see nearly the same."""
    runs: list[Run] = []
    seen: list[int] = []
    least = most = 0
    for start, stop, count in found:
        low, high = min(least, count), max(most, count)
        if runs and (runs[-1][1] != start or high - low > max(_SPREAD, low // 8)):
            yield runs, seen
            runs, seen = [], []
        least, most = (low, high) if runs else (count, count)
        runs.append((start, stop))
        seen.append(count)
    if runs:
        yield runs, seen


def _calls(first: int, runs: list[Run], seen: list[int]) -> Iterator[Call]:
    """One call for what all see; one with a mask for the rest, which runs from the first to the last that see any."""
    least, most = min(seen), max(seen)
    common = least if least >= most - least else 0  # little in common is not worth a call
    if common:
        yield Call(slice(runs[0][0], runs[-1][1]), slice(first, first + common))
    more = [i for i, count in enumerate(seen) if count > common]
    if more:
        part = slice(more[0], more[-1] + 1)
        high = np.repeat(np.asarray(seen[part]) - common, [b - a for a, b in runs[part]])
        queries = slice(runs[more[0]][0], runs[more[-1]][1])
        bounds = None if high.min() == most - common else _bounds(np.zeros_like(high), high)
        yield Call(queries, slice(first + common, first + most), bounds=bounds, blind=bool(high.min() == 0))
