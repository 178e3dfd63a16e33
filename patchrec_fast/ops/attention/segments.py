# SPDX-License-Identifier: Apache-2.0
"""A packed batch as a forest of segments: which rows see which, when several sequences begin alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Segments:
    """S runs of rows, each a root or the continuation of a part of an earlier one.

    Row r of segment s sees the first `visible[s]` rows of segment `parent[s]`, everything that the last of these sees,
    and the rows of s up to itself. The sequence that ends in s is those rows, one after another.

    Attributes:
        cu_seqlens: (S + 1,) int32, segment s is the rows `cu_seqlens[s]:cu_seqlens[s + 1]`, at least one.
        parent: (S,) int32, an earlier segment; -1 for a root.
        visible: (S,) int32, how many of the parent's rows are seen, at least one; 0 for a root.
        position_ids: (R,) int64, each row's place in the sequences that it is in.
        levels: of the forest, 1 of roots alone; None where the host does not know. On a GPU it would wait for it.
    """

    cu_seqlens: Tensor
    parent: Tensor
    visible: Tensor
    position_ids: Tensor
    levels: int | None = None

    @classmethod
    def of(cls, cu_seqlens: Tensor, parent: Tensor, visible: Tensor) -> Segments:
        """Checked segments with the positions that follow from the tree; the tensors are in host memory.

        Raises:
            TypeError: not integers.
            ValueError: shapes that do not fit; a segment without rows; a parent that is not earlier (so no cycles);
                `visible` beyond the parent's rows, below 1 under a parent, or not 0 for a root.
        """
        check(cu_seqlens, parent, visible)
        ends, above, seen = cu_seqlens.long(), parent.long(), visible.long()
        count, rows = len(parent), ends.diff()
        begin = seen.clone()  # (S,) the position of each segment's first row
        levels, up = 1, above
        while (up >= 0).any():  # one level of the tree at a time
            levels, inside = levels + 1, up.clamp(min=0)
            begin += torch.where(up < 0, 0, seen[inside])
            up = torch.where(up < 0, up, above[inside])
        owner = torch.repeat_interleave(torch.arange(count), rows)
        position_ids = begin[owner] + torch.arange(int(ends[-1])) - ends[:-1][owner]
        return cls(cu_seqlens.int(), parent.int(), visible.int(), position_ids, levels)

    def __len__(self) -> int:
        """The number of segments."""
        return len(self.parent)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Segments:
        """A copy on `device`."""
        parts = {name: x.to(device, non_blocking=non_blocking) for name, x in vars(self).items() if name in _TENSORS}
        return replace(self, **parts)

    @cached_property
    def kept(self) -> dict[Any, Any]:
        """What an implementation made of the forest, to be used by every layer."""
        return {}

    def ranges(self) -> tuple[Tensor, Tensor]:
        """Which rows each segment sees: of every depth of the tree it sees one range.

        Returns:
            (S,) int32, each segment's depth, 0 for a root; (S, A, 2) int32, the first of the rows of depth a that it
            sees and the one after the last: its ancestors' and, at its own depth, all of its own. Below, (0, 0).
        """
        above, first, seen = self.parent.long(), self.cu_seqlens[:-1], self.visible
        levels = levels_of(self.parent) if self.levels is None else self.levels
        depth, up = torch.zeros_like(above), above
        for _ in range(levels - 1):
            depth += up >= 0
            up = torch.where(up < 0, up, above[up.clamp(min=0)])
        found = self.cu_seqlens.new_zeros(len(above), levels, 2)
        columns = torch.arange(levels, device=above.device)
        at, node, end = depth, torch.arange(len(above), device=above.device), self.cu_seqlens[1:]
        for _ in range(levels):  # of each segment, one level of what it sees at a time; behind a root, none
            here = torch.stack([first[node], end], 1).unsqueeze(1)  # (S, 1, 2)
            found = torch.where((columns == at.unsqueeze(1)).unsqueeze(2), here, found)
            up = above[node].clamp(min=0)
            at, node, end = at - 1, up, first[up] + seen[node]
        return depth.int(), found


_TENSORS = ("cu_seqlens", "parent", "visible", "position_ids")


def levels_of(parent: Tensor) -> int:
    """Of the forest of these parents, (S,)."""
    above = parent.long()
    levels, up = 1, above
    while bool((up >= 0).any()):
        levels, up = levels + 1, torch.where(up < 0, up, above[up.clamp(min=0)])
    return levels


def check(cu_seqlens: Tensor, parent: Tensor, visible: Tensor) -> None:
    """Raises what `Segments.of` raises."""
    for name, array in (("cu_seqlens", cu_seqlens), ("parent", parent), ("visible", visible)):
        if array.is_floating_point() or array.is_complex() or array.dtype == torch.bool:
            raise TypeError(f"{name}: expected integers, got {array.dtype}")
        if array.ndim != 1:
            raise ValueError(f"{name}: expected one dimension, got shape {tuple(array.shape)}")
    count = len(cu_seqlens) - 1
    if count < 1 or len(parent) != count or len(visible) != count:
        raise ValueError(
            f"cu_seqlens, parent, visible: expected S + 1, S and S numbers for S >= 1 segments, got "
            f"{len(cu_seqlens)}, {len(parent)} and {len(visible)}"
        )
    ends, above, seen = cu_seqlens.long(), parent.long(), visible.long()
    rows = ends.diff()  # (S,)
    if ends[0] != 0 or (rows < 1).any():
        raise ValueError(f"cu_seqlens: expected to rise from 0, each segment with a row, got {ends.tolist()[:20]}")
    bad = ((above < -1) | (above >= torch.arange(count))).nonzero()
    if len(bad):
        s = int(bad[0])
        raise ValueError(f"parent: expected an earlier segment or -1, got {int(above[s])} for segment {s}")
    root = above < 0
    most = torch.where(root, 0, rows[above.clamp(min=0)])
    bad = ((seen > most) | (seen < (~root).long())).nonzero()
    if len(bad):
        s = int(bad[0])
        expected = "0, for it has no parent" if root[s] else f"1 to the {int(most[s])} rows of its parent"
        raise ValueError(f"visible: got {int(seen[s])} for segment {s}, expected {expected}")
