# SPDX-License-Identifier: Apache-2.0
"""What the tokens below trie nodes cost, given the hidden states of the nodes."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .lm_head import LMHead
from .trie import Trie

Normalize = Literal["vocab", "catalogue", "children"]
NORMALIZE = ("vocab", "catalogue", "children")


class Children(NamedTuple):
    """The children of n nodes; C is the most of them."""

    node: Tensor  # (n, C) int64, by rising token
    log_prob: Tensor  # (n, C) float32, of the child's token; -inf where there is none or it is closed; of a node
    # whose logits do not have a finite sum of exponentials, NaN alone, which every search keeps in front

    def by_beam(self, user: Tensor, place: Tensor, shape: tuple[int, int]) -> Children:
        """By user and place, (B, K, C): the children of a beam or group; -inf where none was scored."""
        node = self.node.new_zeros(*shape, self.node.shape[1])
        log_prob = self.log_prob.new_full(node.shape, -torch.inf)
        node[user, place], log_prob[user, place] = self
        return Children(node, log_prob)


class TokenScorer:
    """A head, and the trie whose nodes it scores."""

    def __init__(self, head: LMHead, trie: Trie, normalize: Normalize = "vocab", closed: Tensor | None = None) -> None:
        """Set up.

        Args:
            trie: on the model's device.
            normalize: a token's probability is its share among all V tokens, among the tokens that titles use, or
                among the children of its parent.
            closed: (B, N) bool, the nodes that a user must not enter, looked at in each call; None for none.
        """
        self.closed = closed
        self._head, self._trie, self._normalize = head, trie, normalize
        self._short: LMHead | None = None  # of title tokens alone

    def children(self, hidden: Tensor, user: Tensor, node: Tensor, width: int | None = None) -> Children:
        """What the children of n nodes cost.

        Args:
            hidden: (n, d) of the nodes' rows.
            user: (n,) int64.
            node: (n,) int64. One without children gives -inf, or NaN where they alone are counted.
            width: C, at least the most children; None finds it out, which waits for the device.
        """
        found, total = self._score(hidden, user, node, width)
        if self._normalize == "vocab":
            total = self.total(hidden)
        return Children(found.node, found.log_prob - _finite(total).unsqueeze(1))

    def bounds(self, hidden: Tensor, user: Tensor, node: Tensor) -> tuple[Children, Tensor | None]:
        """The same from title tokens alone, 128,259 rows of the head being some 5,000: log-probabilities that are too
        large by what the other tokens weigh more than they must.

        They weigh at least as much as if all had their mean embedding: exp is convex (Jensen's inequality).

        Returns:
            The children, and (n,) the log-sum-exp that was taken off, at most the true one; None where the
            log-probabilities are exact.
        """
        if self._normalize != "vocab":
            return self.children(hidden, user, node), None
        found, total = self._score(hidden, user, node, None)
        rest = self._title_head().rest(hidden)
        total = _finite(total if rest is None else torch.logaddexp(total, rest))
        return Children(found.node, found.log_prob - total.unsqueeze(1)), total

    def total(self, hidden: Tensor) -> Tensor:
        """(n,) float32: the log-sum-exp over the vocabulary of each row; NaN where it is not finite."""
        return _finite(self._head.log_sum_exp(hidden))

    def _score(self, hidden: Tensor, user: Tensor, node: Tensor, width: int | None) -> tuple[Children, Tensor]:
        """The children's logits, and (n,) the log-sum-exp of theirs or, but for "children", of all title tokens'."""
        trie = self._trie
        first, count = trie.first[node], trie.first[node + 1] - trie.first[node]
        nth = torch.arange(int(count.max()) if width is None else width, device=node.device)
        child = (first.unsqueeze(1) + nth).clamp(max=len(trie) - 1)
        absent = nth >= count.unsqueeze(1)
        places, parts, totals, start = trie.column[child], [], [], 0
        for logits in self._title_head().logits(hidden):
            rows = slice(start, start + len(logits))
            mine = logits.gather(1, places[rows]).masked_fill_(absent[rows], -torch.inf)
            parts.append(mine)
            totals.append((mine if self._normalize == "children" else logits).logsumexp(1))
            start = rows.stop
        found = torch.cat(parts)
        if self.closed is not None:
            found = found.masked_fill_(self.closed[user.unsqueeze(1), child], -torch.inf)
        return Children(child, found), torch.cat(totals)

    def _title_head(self) -> LMHead:
        if self._short is None:
            self._short = self._head.subset(self._trie.used)
        return self._short


def _finite(total: Tensor) -> Tensor:
    """NaN in place of infinities, which as divisors would pass for titles of probability 0."""
    return torch.add(total, total, alpha=0)  # 0 * inf is NaN: one launch
