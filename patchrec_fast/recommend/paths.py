# SPDX-License-Identifier: Apache-2.0
"""The rows on the way to each row of a tree, in memory that grows with the rows and not with their depth.

A path is kept in blocks of depths: a row has its own block, and the row that ends the block above it. Titles of up to
a block are one block, and looking up their paths is one gather.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 64


class Paths:
    """Of all rows so far; rows 0 to B - 1 are roots, of depth 0.

    Attributes:
        depth: (capacity,) int64 of each row.
    """

    def __init__(self, users: int, deepest: int, device: torch.device) -> None:
        """Set up; no row is deeper than `deepest`."""
        self.count, self._width, self._deep = users, min(deepest, _BLOCK), deepest > _BLOCK
        self.depth = torch.zeros(users, dtype=torch.int64, device=device)
        self._block = torch.full((users, self._width), -1, device=device)  # itself last, -1 behind
        self._up = torch.full((users,), -1, device=device)

    def add(self, above: Tensor, first: Tensor, step: Tensor) -> Tensor:
        """Appends m rows, (m,) int64 each.

        Args:
            above: the row above the first of its chain.
            first: the number of that first.
            step: how many places down the chain it is.

        Returns:
            (m,) their depths.
        """
        before = self.depth[above]
        depth = before + 1 + step
        start = (depth - 1) // self._width * self._width  # rows on the path above the block
        nth = torch.arange(self._width, device=step.device) + (start - before).unsqueeze(1)  # (m, W) of the chain
        block = torch.where(nth < 0, self._block[above], first.unsqueeze(1) + nth)
        block = block.masked_fill_(nth > step.unsqueeze(1), -1)
        self._block = appended(self._block, self.count, block)
        if self._deep:
            ends = torch.where(start == before, above, self._up[above])
            up = torch.where(start > before, first + start - before - 1, ends)
            self._up = appended(self._up, self.count, up.masked_fill_(start == 0, -1))
        self.depth = appended(self.depth, self.count, depth)
        self.count += len(step)
        return depth

    def of(self, row: Tensor, longest: int) -> Tensor:
        """(n, longest) int64 rows by depth, itself last, then -1; no row is deeper than `longest`."""
        if longest <= self._width:
            return self._block[row][:, :longest]
        blocks = -(-longest // self._width)
        path = row.new_full((len(row), blocks, self._width), -1)
        nth, at = torch.arange(len(row), device=row.device), (self.depth[row] - 1) // self._width
        while len(nth):
            path[nth, at] = self._block[row]
            row, at = self._up[row], at - 1
            live = row >= 0
            nth, row, at = nth[live], row[live], at[live]
        return path.flatten(1)[:, :longest]


def appended(store: Tensor, count: int, rows: Tensor) -> Tensor:
    """The store, (capacity, ...), with these rows behind its first `count`; a full one is copied to twice its size."""
    needed = count + len(rows)
    if len(store) < needed:
        grown = store.new_empty((max(needed, 2 * count), *store.shape[1:]))
        grown[:count] = store[:count]
        store = grown
    store[count:needed] = rows
    return store
