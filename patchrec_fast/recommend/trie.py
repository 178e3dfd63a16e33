# SPDX-License-Identifier: Apache-2.0
"""The titles of a catalogue as a trie: flat arrays, nodes numbered level by level.

A title's path is its tokens and then the end-of-turn token, so a title that begins another ("Jaws", "Jaws 2") has a
leaf of its own. Nodes of a level are sorted by parent and then token. So the children of a node are neighbours, two
offsets say which, and a merge of two tries is a merge of sorted keys, one level at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..layout import Catalogue
from ..layout.csr import counting
from ..layout.csr import offsets as csr_offsets
from ..layout.histories import integers

_TOKEN_BITS = 32  # a node's key is its parent above its token
Array = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Trie:
    """N nodes; node 0 is the root and has no token. A leaf is a node whose token is `end`.

    Attributes:
        end: the end-of-turn token.
        first: (N + 1,) int64, node v's children are the nodes `first[v]` to `first[v + 1]`, by rising token.
        token: (N,) int64, the token on the way into a node; -1 for the root.
        parent: (N,) int64; 0 for the root.
        items: (I,) int64 item ids, by leaf and, where items share a title, as the catalogue has them.
        item_first: (N + 1,) int64, node v's items are `items[item_first[v]:item_first[v + 1]]`.
        levels: where each depth's nodes begin, and N.
    """

    end: int
    first: Tensor
    token: Tensor
    parent: Tensor
    items: Tensor
    item_first: Tensor
    levels: tuple[int, ...]

    @classmethod
    def from_catalogue(cls, catalogue: Catalogue, end: int) -> Trie:
        """The trie of all titles of a catalogue.

        Args:
            catalogue: at least one title.
            end: the token that ends a title, `Prompt.end_of_turn`.

        Raises:
            ValueError: a title that holds `end`.
        """
        inside = np.flatnonzero(catalogue.token_ids == end)
        if len(inside):
            at = np.searchsorted(catalogue.offsets, inside[0], side="right") - 1
            raise ValueError(f"catalogue: the title {catalogue.titles[at]!r} holds the end-of-turn token {end}")
        starts = catalogue.offsets[:-1].astype(np.int64)
        lengths = np.diff(catalogue.offsets)
        tokens = np.append(catalogue.token_ids, 0)
        node = np.zeros(len(catalogue), np.int64)  # where each title has got to
        keys = []
        for level in range(int(lengths.max()) + 1):
            going = np.flatnonzero(lengths >= level)
            token = np.where(lengths[going] == level, end, tokens[starts[going] + level])
            unique, place = np.unique(node[going] << _TOKEN_BITS | token, return_inverse=True)
            node[going] = place  # in its level
            keys.append(unique)
        leaf = node + csr_offsets(np.array([1, *map(len, keys)]))[lengths + 1]
        return _assemble(end, keys, leaf, catalogue.item_ids)

    def __len__(self) -> int:
        """The number of nodes."""
        return len(self.token)

    def __repr__(self) -> str:
        return f"Trie({len(self)} nodes, {len(self.items)} items, depth {self.depth})"

    @property
    def depth(self) -> int:
        """Tokens of the longest title, the end token included."""
        return len(self.levels) - 2

    def to(self, device: torch.device | str) -> Trie:
        """A copy on `device`; itself where it is there already."""
        if self.token.device == torch.device(device):
            return self
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor) and name in _SAVED
        }
        return replace(self, **moved)

    @cached_property
    def is_leaf(self) -> Tensor:
        """(N,) bool."""
        return self.token == self.end

    @cached_property
    def chain(self) -> Tensor:
        """(N,) int64: nodes from this one down to the next with a choice, or with the end as only child; >= 1."""
        chain = torch.ones_like(self.token)
        first, leaf = self.first, self.is_leaf
        for a, b in reversed(list(pairwise(self.levels[:-1]))):  # the deepest level is leaves alone
            child = first[a:b]
            forced = (first[a + 1 : b + 1] - child == 1) & ~leaf[child]
            chain[a:b] += torch.where(forced, chain[child], 0)
        return chain

    @cached_property
    def leaves(self) -> Tensor:
        """(N,) int64: the leaves below a node, itself included."""
        leaves = self.is_leaf.long()
        for a, b in reversed(list(pairwise(self.levels))[1:]):
            leaves.index_add_(0, self.parent[a:b], leaves[a:b].clone())
        return leaves

    @cached_property
    def used(self) -> Tensor:
        """(U,) int64: the tokens that titles use, the end token among them, rising."""
        return self.token[1:].unique()

    @cached_property
    def column(self) -> Tensor:
        """(N,) int64: the place of a node's token in `used`; 0 for the root."""
        return torch.searchsorted(self.used, self.token)

    def first_items(self, leaf: Tensor) -> Tensor:
        """The first item of each leaf, -1 where `leaf` is negative; any shape, int64."""
        return torch.where(leaf < 0, -1, self.items[self.item_first[leaf.clamp(min=0)]])


_SAVED = ("first", "token", "parent", "items", "item_first")


def _assemble(end: int, keys: list[Array], leaf: Array, item_ids: Array) -> Trie:
    """A trie from each level's sorted keys (place of the parent in its level, token) and each item's leaf."""
    levels = csr_offsets(np.array([1, *map(len, keys)]))  # (depth + 2,)
    key = np.concatenate([np.empty(0, np.int64), *keys])
    above = np.repeat(levels[:-2], [len(level) for level in keys])  # where the parent's level begins
    parent = np.concatenate([[0], above + (key >> _TOKEN_BITS)])
    token = np.concatenate([[-1], key & (1 << _TOKEN_BITS) - 1])
    nodes = len(token)
    order = np.argsort(leaf, kind="stable")
    arrays = {
        "first": 1 + csr_offsets(np.bincount(parent[1:], minlength=nodes)),
        "token": token,
        "parent": parent,
        "items": item_ids[order],
        "item_first": csr_offsets(np.bincount(leaf, minlength=nodes)),
    }
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return Trie(end, levels=tuple(levels.tolist()), **tensors)
