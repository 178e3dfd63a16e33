# SPDX-License-Identifier: Apache-2.0
"""A batch of users as a decoder sees it: read trie nodes behind each prompt, ask what the children's tokens cost.

Every decoder is these two questions in some order. Reading a node is a row of the model; asking is a row of the
language-model head. They are apart because a forced chain of tokens is worth reading in one call, and because not all
that is read is asked about.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..hf.cache import Rows, TreeCache, Trunk
from ..layout import PackedBatch
from .head import Head
from .trie import Trie

Normalize = Literal["vocab", "catalogue", "children"]
NORMALIZE = ("vocab", "catalogue", "children")


class Children(NamedTuple):
    """The children of n nodes; C is the most of them."""

    node: Tensor  # (n, C) int64, by rising token
    log_prob: Tensor  # (n, C) float32, of the child's token; -inf where there is none or it is closed


class Reader:
    """The prompts of B users, read, and the trees behind them.

    Attributes:
        trie: on the model's device.
        users: B.
        rows: of the prompts, those that one user read for the others counted for each.
        asked: (B,) int64, how many nodes' children have been asked about.
    """

    def __init__(
        self,
        model: Any,
        head: Head,
        trie: Trie,
        batch: PackedBatch,
        normalize: Normalize = "vocab",
        closed: Tensor | None = None,
        trunk: Trunk | None = None,
    ) -> None:
        """Reads the prompts: one packed call of an attached model.

        Args:
            batch: without targets, in host memory; with the prefix of the first user alone, or of none.
            normalize: a token's probability is its share among all V tokens, among the tokens that titles use, or
                among the children of its parent.
            closed: (C,) int64 sorted, `user * N + node` of nodes that the user must not enter; None for none.
            trunk: the prefix, read with another batch; None where the first user has it.
        """
        device = trie.token.device
        self.trie, self.users = trie, len(batch)
        self._model, self._head, self._closed = model, head, closed
        self._normalize = normalize
        self._short: Head | None = None  # of title tokens alone
        last = batch.cu_seqlens[1:].long() - 1
        lengths = batch.position_ids[last] + 1  # (B,) of the whole prompts
        left_out = batch.position_ids[batch.cu_seqlens[:-1].long()]
        self._cache = TreeCache(lengths.tolist(), left_out.tolist(), trunk)
        self._lengths, last, self.rows = lengths.to(device), last.to(device), int(lengths.sum())
        inputs = {"max_id": int(batch.ids.max()), **batch.to(device).model_inputs()}
        inputs["cu_seq_lens_k"] = F.pad(lengths.cumsum(0), (1, 0)).int().to(device)
        inputs["max_length_k"] = int(lengths.max())
        self._hidden = self._call(**inputs, logits_to_keep=last)  # (B, d), then a row for each node read
        self._depths = torch.zeros(self.users, dtype=torch.int64, device=device)  # of each row
        self._paths = torch.full((self.users, trie.depth), -1, device=device)  # (rows, A) rows by depth, itself last
        self.asked = torch.zeros_like(self._depths)

    def trunk(self, rows: int) -> Trunk:
        """The first rows of the prompts, for readers of other batches; to be asked before any node is read."""
        return self._cache.trunk(rows)

    def _call(self, **inputs: Any) -> Tensor:
        """The last hidden states, (rows, d)."""
        with self._head.lifted() as kept:
            self._model(**inputs, tree=self._cache)
        return kept[0][0]

    def read(self, user: Tensor, node: Tensor, above: Tensor, chains: bool = True) -> tuple[Tensor, Tensor]:
        """Reads n nodes and the forced tokens behind each.

        Args:
            user: (n,) int64, rising.
            node: (n,) int64, neither root nor leaf.
            above: (n,) int64, the row of the node's parent; a user's own number for the root.
            chains: False reads the nodes alone.

        Returns:
            (n,) the row of each node, and (n,) how many rows after it are its chain.
        """
        chain = self.trie.chain[node] if chains else torch.ones_like(node)
        begin = chain.cumsum(0) - chain  # (n,)
        owner = torch.repeat_interleave(chain)  # (m,) int64, which of the n
        step = torch.arange(len(owner), device=owner.device) - begin[owner]
        mine, depth = user[owner], self._depths[above[owner]] + 1 + step
        row = self._cache.count + begin  # (n,)
        nth = torch.arange(self.trie.depth, device=owner.device) - (depth - 1 - step).unsqueeze(1)  # (m, A) below
        paths = torch.where(nth < 0, self._paths[above[owner]], row[owner].unsqueeze(1) + nth)
        paths = paths.masked_fill_(nth > step.unsqueeze(1), -1)
        counts = torch.bincount(mine, minlength=self.users).tolist()
        self._cache.begin(Rows(mine, depth, paths[:, : int(depth.max())], counts))
        hidden = self._call(
            input_ids=self._tokens_down(node, owner, step).unsqueeze(0),
            position_ids=(self._lengths[mine] + depth - 1).unsqueeze(0),
            # Four dimensions tell transformers that the mask is made; the tree knows who sees whom.
            attention_mask=torch.zeros((1, 1, 1, 1), dtype=torch.bool, device=owner.device),
            use_cache=False,
        )
        self._cache.end()
        self._hidden = torch.cat([self._hidden, hidden])
        self._depths = torch.cat([self._depths, depth])
        self._paths = torch.cat([self._paths, paths])
        return row, chain - 1

    def _tokens_down(self, node: Tensor, owner: Tensor, step: Tensor) -> Tensor:
        """(m,) the token `step` places down the chain of each."""
        nodes = [node]
        for _ in range(int(step.max())):
            nodes.append(self.trie.first[nodes[-1]].clamp(max=len(self.trie) - 1))  # past a chain's end: not picked
        return self.trie.token[torch.stack(nodes)[step, owner]]

    def children(self, user: Tensor, node: Tensor, row: Tensor) -> Children:
        """Asks for n nodes' children.

        Args:
            user: (n,) int64.
            node: (n,) int64, no leaf.
            row: (n,) int64, the node's row; a user's own number for the root.
        """
        found, total = self._ask(user, node, row)
        if self._normalize == "vocab":
            total = self.total(row)
        return Children(found.node, found.log_prob - total.unsqueeze(1))

    def bounds(self, user: Tensor, node: Tensor, row: Tensor) -> tuple[Children, Tensor | None]:
        """The same from title tokens alone, 128,259 rows of the head being some 5,000: log-probabilities that are too
        large by what the other tokens weigh more than they must.

        They weigh at least as much as if all had their mean embedding: exp is convex (Jensen's inequality).

        Returns:
            The children, and (n,) the log-sum-exp that was taken off, at most the true one; None where the
            log-probabilities are exact.
        """
        if self._normalize != "vocab":
            return self.children(user, node, row), None
        found, total = self._ask(user, node, row)
        rest = self._title_head().rest(self._hidden[row])
        total = total if rest is None else torch.logaddexp(total, rest)
        return Children(found.node, found.log_prob - total.unsqueeze(1)), total

    def total(self, row: Tensor) -> Tensor:
        """(n,) float32: the log-sum-exp over the vocabulary of each row."""
        return self._head.log_sum_exp(self._hidden[row])

    def _ask(self, user: Tensor, node: Tensor, row: Tensor) -> tuple[Children, Tensor]:
        """The children's logits, and (n,) the log-sum-exp of theirs or, but for "children", of all title tokens'."""
        trie = self.trie
        first, count = trie.first[node], trie.first[node + 1] - trie.first[node]
        nth = torch.arange(int(count.max()), device=node.device)
        child = (first.unsqueeze(1) + nth).clamp(max=len(trie) - 1)
        absent = nth >= count.unsqueeze(1)
        places, parts, totals, start = trie.column[child], [], [], 0
        for logits in self._title_head().logits(self._hidden[row]):
            rows = slice(start, start + len(logits))
            mine = logits.gather(1, places[rows]).masked_fill_(absent[rows], -torch.inf)
            parts.append(mine)
            totals.append((mine if self._normalize == "children" else logits).logsumexp(1))
            start = rows.stop
        found = torch.cat(parts)
        if self._closed is not None:
            found = found.masked_fill_(_among(user.unsqueeze(1) * len(trie) + child, self._closed), -torch.inf)
        self.asked += torch.bincount(user, minlength=self.users)
        return Children(child, found), torch.cat(totals)

    def _title_head(self) -> Head:
        if self._short is None:
            self._short = self._head.subset(self.trie.used)
        return self._short


def _among(values: Tensor, rising: Tensor) -> Tensor:
    """Whether each value is one of `rising`, sorted and not empty."""
    return rising[torch.searchsorted(rising, values).clamp(max=len(rising) - 1)] == values


def closed_nodes(trie: Trie, user: Tensor, leaf: Tensor) -> Tensor | None:
    """The nodes under which a user has no leaf left, as `Reader` takes them.

    Args:
        user, leaf: (C,) int64, each pair a leaf that this user must not reach; each pair once.
    """
    keys = [user[:0]]
    node = leaf
    while len(node):  # one level up at a time, until all are at the root
        keys.append(user * len(trie) + node)
        node = trie.parent[node]
        user, node = user[node > 0], node[node > 0]
    key, lost = torch.cat(keys).unique(return_counts=True)
    closed = key[lost == trie.leaves[key % len(trie)]]
    return closed if len(closed) else None
