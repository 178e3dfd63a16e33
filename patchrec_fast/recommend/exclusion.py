# SPDX-License-Identifier: Apache-2.0
"""Items that are no answers: those that a user has seen, and those that a call allows nobody or denies to all.

A search is kept from them, not its answers: the nodes that lead to such items alone are closed in every step
(`TokenScorer.closed`), so that k answers are the k best of what is left. What a token costs stays what it was.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..layout.histories import integers
from ..ops.transfer import together
from ..ragged import Ragged
from .trie import Trie

Ids = ArrayLike | Iterable[int]


class Exclusion:
    """Which items are out. A title is closed to a user when all its items are, and else is its first that is in.

    Attributes:
        trie: on the CPU.
        seen: whether the items of a user's own history are.
        banned: (I,) bool in the order of `trie.items`, those that are for every user.
    """

    def __init__(self, trie: Trie, seen: bool = False, allow: Ids | None = None, deny: Ids | None = None) -> None:
        """Set up.

        Args:
            allow: the ids of items, of which others are out; None for all.
            deny: the ids of items that are out; None for none.

        Raises:
            TypeError: ids that are not integers.
            ValueError: an item that the trie does not have, named; no title is left.
        """
        self.trie, self.seen = trie, seen
        self.banned: NDArray[np.bool_] = np.zeros(len(trie.items), bool)
        if allow is not None:
            self.banned[:] = True
            self.banned[_places(trie, "allow", allow)] = False
        if deny is not None:
            self.banned[_places(trie, "deny", deny)] = True
        if self.banned.all():
            given = [name for name, ids in (("allow", allow), ("deny", deny)) if ids is not None]
            raise ValueError(f"{', '.join(given)}: none of the {len(self.banned)} items is left to recommend")

    def __bool__(self) -> bool:
        """Whether anything can be out."""
        return self.seen or bool(self.banned.any())

    def closed(self, histories: Ragged, trie: Trie) -> Tensor:
        """The nodes under which a user has no title left, (B, N) bool.

        Args:
            histories: all that the users have seen.
            trie: the same, on the device of the answer.
        """
        users, device = len(histories.offsets) - 1, trie.token.device
        lost = self._lost.to(device)
        if self.seen:
            pairs = self._seen_out(histories)
            lost = lost + lost_leaves(trie, users, *together([torch.from_numpy(each) for each in pairs], device))
        return (lost == trie.leaves).expand(users, -1)

    def first_items(self, leaf: ArrayLike, histories: Ragged) -> NDArray[np.int64]:
        """The first item of each leaf, (B, k) int64, that is not out; -1 where `leaf` is negative."""
        nodes, items = np.asarray(leaf), self.trie.items.numpy()
        place = self.trie.item_first.numpy()[nodes.clip(min=0)].clip(max=len(items) - 1)
        own = np.arange(len(nodes))[:, None] * len(items)  # a number for each user's places
        user, seen = self._seen(histories) if self.seen else (np.empty(0, np.int64),) * 2
        taken = user * len(items) + seen
        while (again := (nodes >= 0) & (self.banned[place] | np.isin(own + place, taken))).any():
            place[again] += 1
        return np.where(nodes < 0, -1, items[place])

    @cached_property
    def _of_leaf(self) -> NDArray[np.int64]:
        """(N,) how many of a leaf's items are banned."""
        return np.bincount(self.trie.leaves_of_items()[self.banned], minlength=len(self.trie))

    @cached_property
    def _items(self) -> NDArray[np.int64]:
        """(N,) how many items a leaf has."""
        return np.diff(self.trie.item_first.numpy())

    @cached_property
    def _lost(self) -> Tensor:
        """(1, N) int32: the leaves below a node that are closed to everybody."""
        leaf = torch.from_numpy(np.flatnonzero((self._of_leaf == self._items) & (self._items > 0)))
        return lost_leaves(self.trie, 1, torch.zeros_like(leaf), leaf)

    def _seen(self, histories: Ragged) -> NDArray[np.int64]:
        """(2, n): users and the places of items that they have seen; an item watched twice is one."""
        user = np.repeat(np.arange(len(histories.offsets) - 1), np.diff(histories.offsets))
        return np.unique(np.stack([user, self.trie.place_of(histories.values)]), axis=1)

    def _seen_out(self, histories: Ragged) -> NDArray[np.int64]:
        """(2, c): users and leaves that are closed to them and not to everybody."""
        user, place = self._seen(histories)
        stays = ~self.banned[place]
        leaf = self.trie.leaves_of_items()[place[stays]]
        pair, count = np.unique(np.stack([user[stays], leaf]), axis=1, return_counts=True)
        return pair[:, count + self._of_leaf[pair[1]] == self._items[pair[1]]]


def _places(trie: Trie, name: str, ids: Any) -> NDArray[np.int64]:
    """The places of items in `trie.items`.

    Raises:
        TypeError, ValueError: as `Exclusion`.
    """
    listed = ids if isinstance(ids, np.ndarray | Tensor) else list(ids)
    wanted = integers(name, listed)
    if strangers := wanted[~np.isin(wanted, trie.items.numpy())].tolist():
        few = ", ".join(map(str, dict.fromkeys(strangers[:5])))
        raise ValueError(f"{name}: {few} {'is' if len(strangers) == 1 else 'are'} not in the catalogue")
    return trie.place_of(wanted)


def lost_leaves(trie: Trie, users: int, user: Tensor, leaf: Tensor) -> Tensor:
    """How many of these leaves are below each node, itself included, (users, N) int32.

    Args:
        user, leaf: (C,) int64, pairs, each once.
    """
    lost = torch.zeros(users * len(trie), dtype=torch.int32, device=leaf.device)
    node = leaf
    while len(node):  # one level up at a time, until all are at the root
        lost.index_add_(0, user * len(trie) + node, torch.ones_like(node, dtype=torch.int32))
        node = trie.parent[node]
        user, node = user[node > 0], node[node > 0]
    return lost.view(users, -1)
