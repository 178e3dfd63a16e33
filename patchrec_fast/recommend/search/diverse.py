# SPDX-License-Identifier: Apache-2.0
"""The decoder of the paper's released code: greedy searches that keep away from each other's tokens.

It is diverse beam search (Vijayakumar et al. 2018, arXiv 1610.02424) with groups of one beam, as transformers had it
before version 5: `generate(num_beams=g, num_beam_groups=g, diversity_penalty=0.8, early_stopping=True)`. In each step
the groups choose one after another; a group's score of a token is lowered by the penalty for each earlier group that
took the token in this step, and the lowered score is what it carries on. A group whose best token is the end is done.
Its next best token still counts as taken in that step, as it did there.

Groups that meet in different steps may finish the same title: **the answers may hold duplicates**, as the paper's do.
Groups that are at one node are one row of the model and of its head: of 334 scorings for 4 users 119 remain.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..scorer import Children
from ..state import DecodeState
from .beam import Hypotheses


def diverse(state: DecodeState, k: int, groups: int, penalty: float = 0.8, length_penalty: float = 1.0) -> Hypotheses:
    """The k best titles that the groups find.

    Args:
        k: answers, at most `groups`.
        penalty: for each earlier group with the token.
        length_penalty: groups are ordered by their lowered score over `length ** length_penalty`, the end token
            counted; equal ones by group.
    """
    trie, shape = state.trie, (state.users, groups)
    node = torch.zeros(shape, dtype=torch.int64, device=trie.token.device)
    row = torch.arange(state.users, device=node.device).unsqueeze(1).repeat(1, groups)
    ahead, leaf, lengths = torch.zeros_like(node), torch.full_like(node, -1), torch.ones_like(node)
    score = torch.zeros(shape, dtype=torch.float32, device=node.device)  # lowered
    log_prob = torch.zeros_like(score)
    running = torch.ones_like(node, dtype=torch.bool)
    path = _Path(torch.full((*shape, trie.depth), -1, device=node.device), score.new_zeros(*shape, trie.depth))
    for length in range(1, trie.depth + 1):
        user, group = running.nonzero(as_tuple=True)
        if not len(user):
            break
        found, taken = _bounds(state, user, node[user, group], row[user, group])
        if taken is not None:
            path.row[user, group, length - 1], path.taken[user, group, length - 1] = row[user, group], taken
        best, lowered, cost = _in_turn(state, found.by_beam(user, group, shape), score, penalty)
        log_prob, score = torch.where(running, log_prob + cost, log_prob), torch.where(running, lowered, score)
        ends = running & trie.is_leaf[best] & (score > -torch.inf)
        leaf, lengths = torch.where(ends, best, leaf), torch.where(ends, length, lengths)
        running = running & ~ends & (score > -torch.inf)
        node, row, ahead = best, row + 1, ahead - 1
        user, group = (running & (ahead < 0)).nonzero(as_tuple=True)
        if len(user):
            above = row[user, group] - 1
            row[user, group], ahead[user, group] = _read(state, user, node[user, group], above)
    late = path.late(state)
    final = (score - late) / lengths.float() ** length_penalty  # -inf where no title was left
    log_prob = log_prob - late
    order = final.sort(dim=1, descending=True, stable=True)[1][:, :k]
    return Hypotheses(leaf.gather(1, order), final.gather(1, order), log_prob.gather(1, order))


class _Path(NamedTuple):
    """What each group has had scored, by step.

    Which child a group takes does not depend on the log-sum-exp over the vocabulary, the same for all its choices. So
    the bounds' stand in for them, and all are computed at the end, in one pass over the head's weight.
    """

    row: Tensor  # (B, G, A) int64, -1 where nothing
    taken: Tensor  # (B, G, A) float32, the log-sum-exp that the bound is over

    def late(self, state: DecodeState) -> Tensor:
        """(B, G) by how much the sums of bounds are too large."""
        scored = self.row >= 0
        rows, back = self.row[scored].unique(return_inverse=True)
        late = torch.zeros_like(self.taken)
        if len(rows):
            late[scored] = state.total(rows)[back] - self.taken[scored]
        return late.sum(-1)


def _bounds(state: DecodeState, user: Tensor, node: Tensor, row: Tensor) -> tuple[Children, Tensor | None]:
    """`DecodeState.bounds`, each node of a user scored once."""
    users, nodes, rows, back = _once(state, user, node, row)
    found, taken = state.bounds(users, nodes, rows)
    return Children(found.node[back], found.log_prob[back]), None if taken is None else taken[back]


def _read(state: DecodeState, user: Tensor, node: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
    """`DecodeState.read`, each node of a user read once."""
    users, nodes, parents, back = _once(state, user, node, above)
    row, ahead = state.read(users, nodes, parents)
    return row[back], ahead[back]


def _once(state: DecodeState, user: Tensor, node: Tensor, row: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Users, nodes and rows without repetitions, users rising, and where each of the n is among them.

    Groups at one node have one row, since they have read together what is above it.
    """
    key, back = (user * len(state.trie) + node).unique(return_inverse=True)
    rows = torch.empty_like(key)
    rows[back] = row
    return key // len(state.trie), key % len(state.trie), rows, back


def _in_turn(state: DecodeState, children: Children, score: Tensor, penalty: float) -> tuple[Tensor, Tensor, Tensor]:
    """One step of all groups: the best child of each (B, G), its lowered score, and its log-probability."""
    trie = state.trie
    taken = score.new_zeros(len(score), len(trie.used))  # (B, U) earlier groups with the token
    everyone = torch.arange(len(score), device=score.device)
    chosen: list[tuple[Tensor, Tensor, Tensor]] = []
    for group in range(score.shape[1]):
        node, log_prob = children.node[:, group], children.log_prob[:, group]  # (B, C)
        column = trie.column[node]
        total = score[:, group : group + 1] + log_prob - penalty * taken.gather(1, column)
        top, at = total.topk(min(2, total.shape[1]), dim=1)
        best, lowered = node.gather(1, at), top[:, 0]
        ends = trie.is_leaf[best[:, 0]]
        goes_on = torch.where(ends, at[:, -1], at[:, 0])  # what it would read next
        counts = torch.where(ends, top[:, -1], lowered) > -torch.inf
        counts &= ~trie.is_leaf[node[everyone, goes_on]]
        taken[everyone, column[everyone, goes_on]] += counts
        chosen.append((best[:, 0], lowered, log_prob[everyone, at[:, 0]]))
    best, lowered, cost = (torch.stack(column, 1) for column in zip(*chosen, strict=True))
    return best, lowered, cost
