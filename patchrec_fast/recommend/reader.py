# SPDX-License-Identifier: Apache-2.0
"""A batch of users as a decoder sees it: read trie nodes behind each prompt, ask what the children's tokens cost.

Every decoder is these two questions in some order. Reading a node is a row of the model; asking is a row of the
language-model head. They are apart because a forced chain of tokens is worth reading in one call, and because not all
that is read is asked about.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..hf.cache import Rows, TreeCache
from ..layout import PackedBatch
from .head import Head
from .trie import Trie

Normalize = Literal["vocab", "catalogue", "children"]
NORMALIZE = ("vocab", "catalogue", "children")


class Reader:
    """The prompts of B users, read, and the trees behind them.

    Attributes:
        trie: on the model's device.
        users: B.
        asked: (B,) int64, the nodes whose children have been asked about.
    """

    def __init__(
        self,
        model: Any,
        head: Head,
        trie: Trie,
        batch: PackedBatch,
        normalize: Normalize = "vocab",
        closed: Tensor | None = None,
    ) -> None:
        """Reads the prompts: one packed call of an attached model.

        Args:
            batch: without targets, in host memory.
            normalize: a token's probability is its share among all V tokens, among the tokens that titles use, or
                among the children of its parent.
            closed: (C,) int64 sorted, `user * N + node` of nodes that the user must not enter.
        """
        device = trie.token.device
        self.trie, self.users = trie, len(batch)
        self._model, self._head = model, head
        self._over_children = normalize == "children"
        self._column = trie.token if normalize == "vocab" else trie.column
        self._scorer = head if normalize == "vocab" else head.subset(trie.used)
        self._closed = closed
        lengths = batch.cu_seqlens.diff()
        self._cache = TreeCache(lengths.tolist())
        self._lengths = lengths.to(device)
        last = (batch.cu_seqlens[1:].long() - 1).to(device)
        inputs = {"max_id": int(batch.ids.max()), **batch.to(device).model_inputs()}
        self._hidden = self._call(**inputs, logits_to_keep=last)  # (B, d), then a row for each node read
        self.asked = torch.zeros(self.users, dtype=torch.int64, device=device)

    def _call(self, **inputs: Any) -> Tensor:
        with self._head.lifted() as kept:
            self._model(**inputs, tree=self._cache)
        return kept[0][0]

    def read(self, user: Tensor, node: Tensor, depth: Tensor, path: Tensor) -> tuple[Tensor, Tensor]:
        """Reads n nodes and the forced tokens behind each.

        Args:
            user: (n,) int64, rising.
            node: (n,) int64, neither root nor leaf.
            depth: (n,) int64, of the node; a first token is 1 deep.
            path: (n, A) int64, the rows of the nodes above it, by depth; A is the trie's depth.

        Returns:
            (n,) the row of each node, and (n,) how many rows after it are its chain.
        """
        trie = self.trie
        chain = trie.chain[node]
        begin = chain.cumsum(0) - chain  # (n,)
        owner = torch.repeat_interleave(chain)  # (m,) int64, which of the n
        step = torch.arange(len(owner), device=owner.device) - begin[owner]
        token, deep = self._chain_tokens(node, owner, step), depth[owner] + step
        row = self._cache.count + begin  # (n,)
        ahead = torch.arange(path.shape[1], device=owner.device) - (depth[owner] - 1).unsqueeze(1)  # (m, A)
        paths = torch.where(ahead < 0, path[owner], row[owner].unsqueeze(1) + ahead)
        paths = paths.masked_fill_(ahead > step.unsqueeze(1), -1)[:, : int(deep.max())]
        counts = torch.bincount(user[owner], minlength=self.users).tolist()
        self._cache.begin(Rows(user[owner], deep, paths, counts))
        hidden = self._call(
            input_ids=token.unsqueeze(0),
            position_ids=(self._lengths[user[owner]] + deep - 1).unsqueeze(0),
            # Four dimensions tell transformers that the mask is made; the tree knows who sees whom.
            attention_mask=torch.zeros((1, 1, 1, 1), dtype=torch.bool, device=owner.device),
            use_cache=False,
        )
        self._cache.end()
        self._hidden = torch.cat([self._hidden, hidden])
        return row, chain - 1

    def _chain_tokens(self, node: Tensor, owner: Tensor, step: Tensor) -> Tensor:
        """(m,) the token `step` places down the chain of each."""
        nodes = [node]
        for _ in range(int(step.max())):
            nodes.append(self.trie.first[nodes[-1]].clamp(max=len(self.trie) - 1))  # past a chain's end: not picked
        return self.trie.token[torch.stack(nodes)[step, owner]]

    def children(self, user: Tensor, node: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """The children of n nodes, and their tokens' log-probabilities.

        Args:
            user: (n,) int64.
            node: (n,) int64, no leaf.
            row: (n,) int64, the node's row; a user's own number for the root.

        Returns:
            (n, C) int64 nodes by rising token, C the most children of a node; (n, C) float32, -inf where there is
            no such child or the user must not enter it.
        """
        trie = self.trie
        first, count = trie.first[node], trie.first[node + 1] - trie.first[node]
        nth = torch.arange(int(count.max()), device=node.device)
        child = (first.unsqueeze(1) + nth).clamp(max=len(trie) - 1)
        absent = nth >= count.unsqueeze(1)
        if self._closed is not None:
            absent |= _among(user.unsqueeze(1) * len(trie) + child, self._closed)
        column, parts, start = self._column[child], [], 0
        for logits in self._scorer.logits(self._hidden[row]):
            rows = slice(start, start + len(logits))
            mine = logits.gather(1, column[rows])  # (m, C)
            of = mine.masked_fill(nth >= count[rows].unsqueeze(1), -torch.inf) if self._over_children else logits
            parts.append(mine - of.logsumexp(1, keepdim=True))
            start = rows.stop
        self.asked += torch.bincount(user, minlength=self.users)
        return child, torch.cat(parts).masked_fill_(absent, -torch.inf)


def _among(values: Tensor, rising: Tensor) -> Tensor:
    """Whether each value is one of `rising`, sorted and not empty."""
    return rising[torch.searchsorted(rising, values).clamp(max=len(rising) - 1)] == values


def closed_nodes(trie: Trie, users: np.ndarray, leaves: np.ndarray) -> Tensor | None:
    """The nodes under which a user has no leaf left, as `Reader` takes them.

    Args:
        users, leaves: (C,) each pair a leaf that this user must not reach; each pair once.
    """
    if not len(users):
        return None
    device = trie.token.device
    user, node = torch.as_tensor(users, device=device), torch.as_tensor(leaves, device=device)
    keys = []
    for _ in range(trie.depth):  # up to the root's children; leaves lie at different depths
        keys.append(user * len(trie) + node)
        node = trie.parent[node]
        user, node = user[node > 0], node[node > 0]
    key, lost = torch.cat(keys).unique(return_counts=True)
    closed = key[lost == trie.leaves[key % len(trie)]]
    return closed if len(closed) else None
