# SPDX-License-Identifier: Apache-2.0
"""The same beam search in calls of few shapes, which wait for nobody: each can be a CUDA graph.

`beam` launches each step from Python, some thousand launches, and asks the device several times how many rows there
are. Here a step is two functions over memory that stays where it is, one that reads the beams' new nodes and one that
scores and chooses, each for a number of rows rounded up to one of few sizes; between them the host hears three numbers.
The answers are the same.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...hf.decode_cache import Rows, StaticCache
from ..lm_head import LMHead
from ..scorer import TokenScorer
from ..state import PromptState, read_nodes, tokens_down
from ..trie import Trie
from .beam import BeamConfig, Hypotheses, best, choose, divisors, first_step
from .cuda_graph import CudaGraphs

_SMALLEST = 16  # rows of a call


def rounded(count: int) -> int:
    """The smallest of 16, 24, 32, 48, 64, ... from `count` on: few shapes, and at most half as many rows again."""
    size = _SMALLEST
    while size < count:
        size *= 2
    return size * 3 // 4 if size > _SMALLEST and count <= size * 3 // 4 else size


class StaticBeamSearch:
    """Searches for batches of at most B users, one after another.

    A row of the trees is numbered `depth * B * K + column`. Of its user's K columns a beam has one for as long as its
    forced chain goes on: rows of a depth are written once it is reached, and those above are never written again.

    Attributes:
        cache: takes the prompts' keys and values (`PromptState`), after `StaticCache.reset`.
    """

    def __init__(
        self,
        model: Any,
        head: LMHead,
        trie: Trie,
        scorer: TokenScorer,
        config: BeamConfig,
        cache: StaticCache,
        graphs: CudaGraphs,
    ) -> None:
        """Set up.

        Args:
            trie: on the model's device.
            scorer: the same object for all batches.
            cache: with `tree_rows(trie, users, config.beams)` rows.
            graphs: runs the functions; of nobody else.
        """
        users, beams, device = cache.capacity[0], config.beams, trie.token.device
        shape = users, beams
        self.cache = cache
        self._model, self._head, self._trie, self._scorer, self._config = model, head, trie, scorer, config
        self._graphs, self._longest = graphs, int(trie.chain.max())
        self._divisors, self._width = divisors(config, trie), trie.widest
        self._score = torch.full(shape, -torch.inf, dtype=torch.float32, device=device)
        self._node = torch.zeros(shape, dtype=torch.int64, device=device)
        self._row, self._ahead = torch.zeros_like(self._node), torch.zeros_like(self._node)  # as of `beam`
        self._unread = torch.zeros_like(self._node)  # rows that a beam waits for: its node and chain, or none
        self._path = torch.full((users * beams, trie.depth - 1), -1, device=device)  # rows by depth, the chain's too
        self._done = Hypotheses.nothing(*shape, device)
        self._num_scored = torch.zeros(users, dtype=torch.int64, device=device)
        self._counts = torch.zeros(3, dtype=torch.int64, device=device)  # beams, unread rows, the most of a user
        self._depth = torch.zeros(1, dtype=torch.int64, device=device)  # of the beams' nodes, the first token's 0
        self._depths = torch.arange(trie.depth - 1, device=device)
        self._columns = torch.arange(beams, device=device)
        self._first = torch.arange(users, device=device).unsqueeze(1) * beams  # (B, 1) each user's first beam
        self._lengths = torch.zeros(users, dtype=torch.int64, device=device)
        self._hidden: Tensor | None = None  # (rows of the trees, d)

    @staticmethod
    def tree_rows(trie: Trie, users: int, beams: int) -> int:
        """How many rows a cache needs: those of every depth, and one where rows that are none are put."""
        return users * beams * (trie.depth - 1) + 1

    def search(self, prompts: PromptState) -> Hypotheses:
        """The answers for prompts that were read into `cache`."""
        users, trie = prompts.users, self._trie
        if self._hidden is None:
            rows = self.tree_rows(trie, *self._score.shape)
            self._hidden = prompts.hidden.new_zeros(rows, prompts.hidden.shape[1])
        chosen, done = first_step(prompts, self._config)
        self._score.fill_(-torch.inf)  # of users that this batch does not have, too
        self._score[:users], self._node[:users] = chosen.score, chosen.node
        for mine, theirs in zip(self._done, done, strict=True):
            mine[:users] = theirs
        self._lengths[:users] = prompts.lengths
        for state in (self._num_scored, self._depth, self._row, self._ahead):
            state.zero_()
        self._path.fill_(-1)
        self._advance(torch.zeros_like(self._node))
        for _ in range(2, trie.depth + 1):
            beams, unread, most = self._counts.tolist()
            if not beams:
                break
            if unread:
                sizes = rounded(unread), rounded(most)
                self._graphs(("read", *sizes), partial(self._read, *sizes))
            size = min(rounded(beams), self._score.numel())
            self._graphs(("choose", size), partial(self._choose, size))
        prompts.num_scored += self._num_scored[:users]
        return best(self._config, Hypotheses(*(column[:users].clone() for column in self._done)))

    def _read(self, rows: int, most: int) -> None:
        """Reads what the beams wait for, at most so many rows, and of a user.

        Rows that are none see nothing of a user and are put where nobody looks.
        """
        assert self._hidden is not None
        beams, unread = self._score.numel(), self._unread.flatten()
        ends, number = unread.cumsum(0), torch.arange(rows, device=unread.device)
        there = number < ends[-1]
        owner = torch.searchsorted(ends, number, right=True).clamp(max=beams - 1)  # who waits for none has no row
        step = torch.where(there, number - (ends - unread)[owner], 0)
        depth = self._depth + step
        row = torch.where(there, self._row.flatten()[owner] + step * beams, len(self._hidden) - 1)
        path = self._path[owner].masked_fill((self._depths > depth.unsqueeze(1)) | ~there.unsqueeze(1), -1)
        path[:, 0] = torch.where(there, path[:, 0], row)
        cu_rows = F.pad(self._unread.sum(1).cumsum(0), (1, 0)).int()
        tokens = tokens_down(self._trie, self._node.flatten(), owner, step, min(most, self._longest))
        positions = torch.where(there, self._lengths[owner // self._score.shape[1]] + depth, 0)
        self.cache.begin(Rows(path, cu_rows, most))
        hidden = read_nodes(self._model, self._head, self.cache, tokens.clamp(min=0), positions)
        self.cache.end()
        self._hidden.index_copy_(0, row, hidden)

    def _choose(self, size: int) -> None:
        """Scores the children of the beams, of which at most so many live, and chooses."""
        assert self._hidden is not None
        users, beams = self._score.shape
        live = self._score > -torch.inf
        self._num_scored += live.sum(1)
        dead = (~live).flatten().long()
        beam = dead.argsort(dim=0, stable=True)[:size]  # those that live, then others, which win nothing
        user, place = beam // beams, beam % beams
        row, node = self._row.flatten()[beam], self._node.flatten()[beam]
        found = self._scorer.children(self._hidden[row], user, node, self._width)
        children = found.by_beam(user, place, (users, beams))
        self._depth += 1
        divisor = self._divisors[self._depth + 1]  # the length of titles that end now
        chosen, done = choose(self._config, self._trie, self._score, children, self._done, divisor, self._divisors[-1])
        self._score.copy_(chosen.score)
        self._node.copy_(chosen.node)
        for mine, theirs in zip(self._done, done, strict=True):
            mine.copy_(theirs)
        self._advance(chosen.parent)

    def _advance(self, parent: Tensor) -> None:
        """What the beams of `_score` and `_node`, (B, K) each, have of their parents, and what they wait for."""
        shape, before = self._score.shape, (self._first + parent).flatten()
        live, row = self._score > -torch.inf, self._row.flatten()[before].view(shape) + self._score.numel()
        ahead = self._ahead.flatten()[before].view(shape) - 1
        reads = live & (ahead < 0)
        column = row % self._score.numel() - self._first
        goes_on = (live & ~reads).unsqueeze(2) & (column.unsqueeze(2) == self._columns)  # (B, K, K)
        free = goes_on.any(1).long().argsort(dim=1, stable=True)  # the columns that nobody has first
        column = free.gather(1, (reads.cumsum(1) - 1).clamp(min=0))
        row = torch.where(reads, self._depth * self._score.numel() + self._first + column, row)
        chain = torch.where(reads, self._trie.chain[self._node], 0)
        step = self._depths - self._depth  # (A,)
        new = reads.view(-1, 1) & (step >= 0)
        rows = torch.where(step < chain.view(-1, 1), row.view(-1, 1) + step * self._score.numel(), -1)
        self._path.copy_(torch.where(new, rows, self._path[before]))
        self._row.copy_(row)
        self._ahead.copy_(torch.where(reads, chain - 1, ahead))
        self._unread.copy_(chain)
        of_user = chain.sum(1)
        self._counts.copy_(torch.stack([live.sum(), of_user.sum(), of_user.amax()]))
