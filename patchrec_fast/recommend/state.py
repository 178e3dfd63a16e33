# SPDX-License-Identifier: Apache-2.0
"""A batch of users as a decoder sees it: read trie nodes behind each prompt, score their children's tokens.

Every decoder does these two in some order. Reading a node is a row of the model; scoring its children is a row of the
language-model head. They are apart because a forced chain of tokens is worth reading in one call, and because not all
that is read is scored.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..hf.decode_cache import Chain, DynamicCache, Rows
from ..layout import PackedBatch
from ..ops.transfer import together
from .lm_head import LMHead
from .paths import Paths, appended
from .scorer import Children, TokenScorer
from .trie import Trie

_LONG = 32  # tokens of a forced chain whose rows read slices of the tree, not each its own path
_ROWS = 4096  # of such chains read at once, at most, or one chain


class PromptState:
    """The prompts of B users, read.

    Attributes:
        trie: on the model's device.
        users: B.
        cache, scorer: as given.
        lengths: (B,) int64 rows of each prompt, those that are not in the batch included; on the model's device.
        rows: of the prompts, those that one user read for the others counted for each.
        hidden: (B, d) of the prompts' last rows, and then of each node that was read.
        num_scored: (B,) int64, how many nodes' children have been scored.
    """

    def __init__(
        self,
        model: Any,
        head: LMHead,
        trie: Trie,
        batch: PackedBatch,
        cache: DynamicCache,
        scorer: TokenScorer,
    ) -> None:
        """Reads the prompts: one packed call of an attached model.

        Args:
            batch: without targets, in host memory; `patchrec_fast.layout.rows.without` what the cache's parents have.
            cache: of its prompts; takes their keys and values.
        """
        device = trie.token.device
        self.trie, self.users = trie, len(batch)
        self._model, self._head, self.cache, self.scorer = model, head, cache, scorer
        ends = batch.user_offsets[1:].long() - 1
        self.lengths, last = together([torch.tensor(cache.lengths), ends], device)
        self.rows = sum(cache.lengths)
        inputs = {"max_id": int(batch.ids.max()), **batch.to(device).model_inputs()}
        inputs["cu_seq_lens_k"] = cache.cu_seqlens[: self.users + 1]
        inputs["max_length_k"] = max(cache.lengths)
        inputs["longest"] = inputs["max_length_k"] + trie.depth - 1
        self.hidden = last_hidden(model, head, cache, **inputs, logits_to_keep=last)
        self.num_scored = torch.zeros(self.users, dtype=torch.int64, device=device)

    def children(self, user: Tensor, node: Tensor, row: Tensor) -> Children:
        """The children of n nodes, scored.

        Args:
            user: (n,) int64.
            node: (n,) int64, no leaf.
            row: (n,) int64, the node's row; a user's own number for the root.
        """
        self.num_scored += torch.bincount(user, minlength=self.users)
        return self.scorer.children(self.hidden[row], user, node)

    def bounds(self, user: Tensor, node: Tensor, row: Tensor) -> tuple[Children, Tensor | None]:
        """The same with `TokenScorer.bounds`."""
        self.num_scored += torch.bincount(user, minlength=self.users)
        return self.scorer.bounds(self.hidden[row], user, node)

    def total(self, row: Tensor) -> Tensor:
        """(n,) float32: the log-sum-exp over the vocabulary of each row."""
        return self.scorer.total(self.hidden[row])


class DecodeState(PromptState):
    """The same, and a tree behind each prompt that grows by what is read."""

    def __init__(
        self, model: Any, head: LMHead, trie: Trie, batch: PackedBatch, cache: DynamicCache, scorer: TokenScorer
    ) -> None:
        """Reads the prompts, as `PromptState`."""
        super().__init__(model, head, trie, batch, cache, scorer)
        self._paths = Paths(self.users, trie.depth, trie.token.device)

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
        if not chains:
            return self._read(user, node, above, torch.ones_like(node)), torch.zeros_like(node)
        chain = self.trie.chain[node]
        long = chain > _LONG
        if not long.any():
            return self._read(user, node, above, chain), chain - 1
        row, short, long = torch.empty_like(node), (~long).nonzero().squeeze(1), long.nonzero().squeeze(1)
        if len(short):
            row[short] = self._read(user[short], node[short], above[short], chain[short])
        for some in long.split(max(1, _ROWS // int(chain[long].max()))):
            row[some] = self._read(user[some], node[some], above[some], chain[some], alone=True)
        return row, chain - 1

    def _read(self, user: Tensor, node: Tensor, above: Tensor, chain: Tensor, alone: bool = False) -> Tensor:
        """Reads n nodes and the chains behind them, one call of the model; (n,) the rows of the nodes.

        Args:
            chain: (n,) int64, rows of each node and its chain.
            alone: each chain has an attention call of its own, over slices: a row of others gathers its whole path.
        """
        begin = chain.cumsum(0) - chain  # (n,)
        owner = torch.repeat_interleave(chain)  # (m,) int64, which of the n
        step = torch.arange(len(owner), device=owner.device) - begin[owner]
        mine, first, row = user[owner], self.cache.count, self.cache.count + begin
        depth = self._paths.add(above[owner], row[owner], step)
        if alone:
            whole = zip(user.tolist(), above, self._paths.depth[above].tolist(), chain.tolist(), strict=True)
            self.cache.begin([Chain(u, self._paths.of(at[None], deep)[0], rows) for u, at, deep, rows in whole])
        else:
            paths = self._paths.of(torch.arange(first, first + len(owner), device=owner.device), int(depth.max()))
            counts = torch.bincount(mine, minlength=self.users)
            self.cache.begin(Rows(paths, F.pad(counts.cumsum(0), (1, 0)).int(), int(counts.max())))
        tokens = tokens_down(self.trie, node, owner, step, int(step.max()) + 1)
        positions = self.lengths[mine] + depth - 1
        hidden = read_nodes(self._model, self._head, self.cache, tokens, positions)
        self.cache.end()
        self.hidden = appended(self.hidden, first, hidden)
        return row


def tokens_down(trie: Trie, node: Tensor, owner: Tensor, step: Tensor, longest: int) -> Tensor:
    """(m,) the token `step` places down the chain of `node[owner]`.

    Args:
        node: (n,) int64.
        owner, step: (m,) int64; each step below `longest`.
    """
    nodes = [node]
    for _ in range(longest - 1):
        nodes.append(trie.first[nodes[-1]].clamp(max=len(trie) - 1))  # past a chain's end: not picked
    return trie.token[torch.stack(nodes)[step, owner]]


def last_hidden(model: Any, head: LMHead, cache: DynamicCache, **inputs: Any) -> Tensor:
    """The last hidden states, (rows, d), of a call whose keys and values the cache takes."""
    with head.lifted() as kept:
        model(**inputs, kv_cache=cache)
    return kept[0][0]


def read_nodes(model: Any, head: LMHead, cache: DynamicCache, tokens: Tensor, positions: Tensor) -> Tensor:
    """The same of n rows of the trees.

    Args:
        tokens, positions: (n,) int64.
    """
    return last_hidden(
        model,
        head,
        cache,
        input_ids=tokens.unsqueeze(0),
        position_ids=positions.unsqueeze(0),
        use_cache=False,
    )
