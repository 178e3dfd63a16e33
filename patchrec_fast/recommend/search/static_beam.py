# SPDX-License-Identifier: Apache-2.0
"""The same beam search in steps of one shape, which wait for nobody: a step can be a CUDA graph.

`beam` reads the nodes that are new and scores the beams that live, as many as there are, and so has to know how many:
on a GPU each such number is a wait, and each step some thousand launches from Python. Here every step reads and scores
B * K rows, dead beams among them, in memory that stays where it is. The answers are the same.
"""

from __future__ import annotations

from typing import Any

import torch

from ...hf.decode_cache import Rows, StaticCache
from ..lm_head import LMHead
from ..scorer import Children, TokenScorer
from ..state import PromptState, read_nodes
from ..trie import Trie
from .beam import BeamConfig, Hypotheses, best, choose, divisors, first_step
from .cuda_graph import CudaGraph, LaggedFlag


class StaticBeamSearch:
    """Searches for batches of at most B users, one after another.

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
        step: CudaGraph,
    ) -> None:
        """Set up.

        Args:
            trie: on the model's device.
            scorer: the same object for all batches.
            cache: with room for `config.beams` rows a user in each of `trie.depth - 1` steps.
            step: runs the steps; empty.
        """
        users, beams, device = cache.capacity[0], config.beams, trie.token.device
        shape = users, beams
        self.cache = cache
        self._model, self._head, self._trie, self._scorer, self._config = model, head, trie, scorer, config
        self._divisors, self._width = divisors(config, trie), trie.widest
        self._score = torch.full(shape, -torch.inf, dtype=torch.float32, device=device)
        self._node = torch.zeros(shape, dtype=torch.int64, device=device)
        self._done = Hypotheses.nothing(*shape, device)
        self._num_scored = torch.zeros(users, dtype=torch.int64, device=device)
        self._alive = torch.zeros((), dtype=torch.bool, device=device)
        self._user = torch.arange(users, device=device).repeat_interleave(beams)  # (n,)
        self._first = torch.arange(users, device=device).unsqueeze(1) * beams  # (B, 1) each user's first row
        self._lengths = torch.zeros(users, dtype=torch.int64, device=device)
        # Step s reads the rows numbered from s * n.
        self._read = torch.zeros(1, dtype=torch.int64, device=device)  # steps so far
        self._depth = torch.arange(trie.depth - 1, device=device)
        self._nth = torch.arange(users * beams, device=device)
        self._rows = Rows(
            torch.full((users * beams, trie.depth - 1), -1, device=device),
            torch.arange(users + 1, dtype=torch.int32, device=device) * beams,
            beams,
        )
        self._step = step

    def search(self, prompts: PromptState) -> Hypotheses:
        """The answers for prompts that were read into `cache`."""
        users, trie = prompts.users, self._trie
        chosen, done = first_step(prompts, self._config)
        self._score.fill_(-torch.inf)  # of users that this batch does not have, too
        self._score[:users], self._node[:users] = chosen.score, chosen.node
        for mine, theirs in zip(self._done, done, strict=True):
            mine[:users] = theirs
        self._lengths[:users] = prompts.lengths
        self._rows.path.fill_(-1)
        self._num_scored.zero_()
        self._read.zero_()
        alive = LaggedFlag(self._alive)
        for _ in range(2, trie.depth + 1):
            self._step(self._one_step)
            if not alive.previous():
                break
        prompts.num_scored += self._num_scored[:users]
        return best(self._config, Hypotheses(*(column[:users].clone() for column in self._done)))

    def _one_step(self) -> None:
        """Reads the beams, scores their children, and chooses: state in, state out."""
        shape, trie, path = self._score.shape, self._trie, self._rows.path
        self._num_scored += (self._score > -torch.inf).sum(1)
        node = self._node.flatten()
        number = self._read * len(self._nth) + self._nth
        path.copy_(torch.where(self._depth == self._read, number.unsqueeze(1), path))  # each is on its own
        self.cache.begin(self._rows)
        positions = self._lengths[self._user] + self._read
        hidden = read_nodes(self._model, self._head, self.cache, trie.token[node].clamp(min=0), positions)
        self.cache.end()
        self._read += 1
        found = self._scorer.children(hidden, self._user, node, self._width)
        children = Children(*(column.view(*shape, -1) for column in found))
        divisor = self._divisors[self._read + 1]  # the length of titles that end now
        chosen, done = choose(self._config, trie, self._score, children, self._done, divisor, self._divisors[-1])
        path.copy_(path[(self._first + chosen.parent).flatten()])
        self._score.copy_(chosen.score)
        self._node.copy_(chosen.node)
        for mine, theirs in zip(self._done, done, strict=True):
            mine.copy_(theirs)
        self._alive.copy_((chosen.score > -torch.inf).any())
