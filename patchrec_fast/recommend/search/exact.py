# SPDX-License-Identifier: Apache-2.0
"""The true k best titles, by best-first search with upper bounds.

A title's log-probability is at most that of any node on its path, so a node that is no better than the k-th best
finished title need not be entered. Entries of the frontier are visited by falling bound, the best of every user at
once. A bound comes from the tokens that titles use alone (`DecodeState.bounds`), a small part of the head's work; only
when an entry comes to the front is its parent's log-sum-exp over the vocabulary computed, which gives all its siblings
their true log-probabilities too. So most of the nodes that are read never meet the full vocabulary, and the answer is
the same. The order of visits is that of A* (Hart, Nilsson and Raphael 1968), the bound its admissible heuristic.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..state import DecodeState
from .beam import Hypotheses


class _Frontier(NamedTuple):
    """F entries: nodes whose parents have been read."""

    user: Tensor  # (F,) int64
    node: Tensor
    above: Tensor  # the parent's row
    bound: Tensor  # (F,) float32, at least the log-probability
    true: Tensor  # (F,) bool, and equal to it

    def only(self, which: Tensor) -> _Frontier:
        return _Frontier(*(column[which] for column in self))

    def and_also(self, other: _Frontier) -> _Frontier:
        return _Frontier(*map(torch.cat, zip(self, other, strict=True)))


def exact(state: DecodeState, k: int) -> Hypotheses:
    """Searches; titles whose log-probabilities are equal come in any order."""
    return _Search(state, k).run()


class _Search:
    """The state of one batch."""

    def __init__(self, state: DecodeState, k: int) -> None:
        self.state, self.k = state, k
        self.leaf = torch.full((state.users, k), -1, device=state.trie.token.device)
        self.score = torch.full(self.leaf.shape, -torch.inf, dtype=torch.float32, device=self.leaf.device)
        self.taken = self.score.new_empty(0)  # (rows,) the log-sum-exp that each row's bounds are over

    def run(self) -> Hypotheses:
        root = torch.arange(self.state.users, device=self.leaf.device)
        frontier = self._children(root, torch.zeros_like(root), root, self.score.new_zeros(len(root)))
        # Grows: little is read in vain early, and the rounds are few. Doubled, half as many nodes again are read.
        width = 2 * self.k
        while len(frontier.user):
            order, place = _ordered(frontier.user, frontier.bound)
            frontier, front = frontier.only(order), place < width
            settled, loose = front & frontier.true, (place < 2 * self.k) & ~frontier.true
            visited, ends = frontier.only(settled), self.state.trie.is_leaf[frontier.node[settled]]
            self._finish(visited.only(ends))
            frontier = self._tightened(frontier, loose).only(~settled).and_also(self._entered(visited.only(~ends)))
            frontier = frontier.only(frontier.bound > self.score[frontier.user, -1])
            width = min(width * 3 // 2 + 1, len(self.state.trie))
        return Hypotheses(self.leaf, self.score, self.score)

    def _finish(self, ended: _Frontier) -> None:
        """The k best of each user, with these titles."""
        users, k = self.leaf.shape
        user = torch.arange(users, device=self.leaf.device).repeat_interleave(k)
        user, score = torch.cat([user, ended.user]), torch.cat([self.score.flatten(), ended.bound])
        leaf = torch.cat([self.leaf.flatten(), ended.node])
        order, place = _ordered(user, score)
        best = order[place < k]
        self.leaf, self.score = leaf[best].view(users, k), score[best].view(users, k)

    def _tightened(self, frontier: _Frontier, loose: Tensor) -> _Frontier:
        """The frontier with the true log-probabilities of these entries (F,) and of their siblings."""
        rows = frontier.above[loose].unique()
        if not len(rows):
            return frontier
        late, known = torch.zeros_like(self.taken), torch.zeros_like(self.taken, dtype=torch.bool)
        late[rows], known[rows] = self.taken[rows] - self.state.total(rows), True
        late, known = late[frontier.above], known[frontier.above]
        self._spoil(frontier.user[late.isnan()])
        return frontier._replace(bound=frontier.bound + late, true=frontier.true | known)

    def _spoil(self, user: Tensor) -> None:
        """Users with a probability that is not finite: all their scores are NaN from here on, and no bound passes."""
        self.score[user] = torch.nan

    def _entered(self, entries: _Frontier) -> _Frontier:
        """Reads the nodes, and gives their children. Not the forced chains behind them: most are pruned before their
        end, and read whole they were 2.4 times the rows in as many calls of the model."""
        if not len(entries.user):
            return entries
        row, _ = self.state.read(entries.user, entries.node, entries.above, chains=False)
        return self._children(entries.user, entries.node, row, entries.bound)

    def _children(self, user: Tensor, node: Tensor, row: Tensor, score: Tensor) -> _Frontier:
        """The entries of n nodes' children that may be among the best."""
        found, taken = self.state.bounds(user, node, row)
        self._spoil(user[found.log_prob[:, 0].isnan()])
        if taken is not None:
            new = max(0, int(row.max()) + 1 - len(self.taken))
            self.taken = torch.cat([self.taken, self.taken.new_full((new,), torch.nan)])
            self.taken[row] = taken
        bound = score.unsqueeze(1) + found.log_prob
        nth, place = (bound > self.score[user, -1:]).nonzero(as_tuple=True)
        true = torch.full_like(nth, taken is None, dtype=torch.bool)
        return _Frontier(user[nth], found.node[nth, place], row[nth], bound[nth, place], true)


def _ordered(user: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """The order by user and falling score, and each one's place, from 0, among its user's in that order."""
    order = score.argsort(descending=True, stable=True)
    order = order[user[order].argsort(stable=True)]
    count = torch.bincount(user)
    return order, torch.arange(len(order), device=order.device) - (count.cumsum(0) - count)[user[order]]
