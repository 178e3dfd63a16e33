# SPDX-License-Identifier: Apache-2.0
"""Beam search over the trie: the hypotheses and the order of transformers' `generate(num_beams=...)`.

`generate` with `prefix_allowed_tokens_fn` sums log-probabilities over the full vocabulary. Its defaults are
`length_penalty=1.0, early_stopping=False`; the same two values here give the same result, and so does any other
pair. Ours by default are 0.0 and False, the textbook's beam search: scores are sums of log-probabilities and only
fall, so a beam that is no better than the k-th finished title is dropped, and a user is done when no beam is left.

In each step every beam of a user gains one token. Of all continuations the best 2 * beams are looked at: titles that
end among the first `beams` of them are finished, the best `beams` of the others go on.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..scorer import Children
from ..state import DecodeState, PromptState
from ..trie import Trie

EarlyStopping = bool | Literal["never"]


class Hypotheses(NamedTuple):
    """The best titles of each user, best first; -1 and -inf where fewer exist; a score of NaN says that something on
    the way was not finite, and the user's answers mean nothing."""

    leaf: Tensor  # (B, k) int64
    score: Tensor  # (B, k) float32, by which they are ordered
    log_prob: Tensor  # (B, k) float32, the sum of the tokens' log-probabilities

    @classmethod
    def nothing(cls, users: int, count: int, device: torch.device) -> Hypotheses:
        leaf = torch.full((users, count), -1, device=device)
        score = torch.full(leaf.shape, -torch.inf, dtype=torch.float32, device=device)
        return cls(leaf, score, score.clone())


class BeamConfig(NamedTuple):
    """How wide to search, and what decides which beams go on."""

    k: int
    """How many titles to return, at most `beams`."""
    beams: int
    """How many run side by side."""
    length_penalty: float = 0.0
    """A finished title's score is its log-probability over `length ** length_penalty`, the end token counted."""
    early_stopping: EarlyStopping = False
    """True: done when `beams` titles are finished. False: when the best running beam, ended now, would not enter.
    "never": when it could not even at the trie's full depth. As in transformers; False and "never" are the same for a
    length_penalty of 0."""


class Beams(NamedTuple):
    """The beams that go on, (B, K) each; score -inf is no beam."""

    score: Tensor
    node: Tensor
    parent: Tensor  # which of the beams before it


class _LiveBeams(NamedTuple):
    """The running beams, (B, K) each; score -inf is no beam."""

    score: Tensor
    node: Tensor
    row: Tensor  # of the node
    ahead: Tensor  # rows after it that are read already: its forced chain


def beam(state: DecodeState, config: BeamConfig) -> Hypotheses:
    """The k best titles of each user by beam search."""
    shape, device = (state.users, config.beams), state.trie.token.device
    chosen, done = first_step(state, config)
    penalties = divisors(config, state.trie)
    root = torch.arange(state.users, device=device).unsqueeze(1).expand(shape)
    running = _advance(state, _LiveBeams(*chosen[:2], root, torch.zeros_like(root)), chosen)
    for length in range(2, state.trie.depth + 1):
        user, place = (running.score > -torch.inf).nonzero(as_tuple=True)
        if not len(user):
            break
        found = state.children(user, running.node[user, place], running.row[user, place])
        children = found.by_beam(user, place, shape)
        chosen, done = choose(config, state.trie, running.score, children, done, penalties[length], penalties[-1])
        running = _advance(state, running, chosen)
    return best(config, done)


def first_step(prompts: PromptState, config: BeamConfig) -> tuple[Beams, Hypotheses]:
    """From the prompts to the first tokens; `parent` is 0."""
    user = torch.arange(prompts.users, device=prompts.trie.token.device)
    found = prompts.children(user, torch.zeros_like(user), user)
    shape = (prompts.users, config.beams)
    score = found.log_prob.new_full(shape, -torch.inf)
    score[:, 0] = 0
    children = found.by_beam(user, torch.zeros_like(user), shape)
    penalties = divisors(config, prompts.trie)
    nothing = Hypotheses.nothing(*shape, user.device)
    return choose(config, prompts.trie, score, children, nothing, penalties[1], penalties[-1])


def divisors(config: BeamConfig, trie: Trie) -> Tensor:
    """(depth + 1,) float32: what the log-probability of a title of each length is divided by."""
    lengths = range(1, trie.depth + 1)
    powers = [1.0, *(length**config.length_penalty for length in lengths)]
    return torch.tensor(powers, dtype=torch.float32, device=trie.token.device)


def best(config: BeamConfig, done: Hypotheses) -> Hypotheses:
    """The k first."""
    return Hypotheses(*(column[:, : config.k] for column in done))


def choose(
    config: BeamConfig,
    trie: Trie,
    score: Tensor,  # (B, K) of the beams
    children: Children,  # (B, K, C) theirs
    done: Hypotheses,  # (B, K)
    divisor: Tensor,  # of titles that end now
    last_divisor: Tensor,  # of the longest
) -> tuple[Beams, Hypotheses]:
    """One step: the beams that go on, and the finished titles with those that end now. Waits for nobody."""
    beams = config.beams
    total, node, parent = _best(score, children, 2 * beams)
    ends = (trie.is_leaf[node] & (total > -torch.inf)) | total.isnan()  # NaN sorts before all: it stays, and is seen
    done = _finish(done, total, node, ends, divisor)
    going, chosen = total.masked_fill(ends, -torch.inf).sort(dim=1, descending=True, stable=True)
    going, chosen = going[:, :beams], chosen[:, :beams]
    if config.length_penalty == 0 and config.early_stopping is not True:
        going = going.masked_fill(going <= done.score[:, config.k - 1 : config.k], -torch.inf)
    else:
        far = config.early_stopping == "never" and config.length_penalty > 0
        hopeless = going[:, :1] / (last_divisor if far else divisor) <= done.score[:, -1:]
        full = done.score[:, -1:] > -torch.inf
        going = going.masked_fill(full & (hopeless | (config.early_stopping is True)), -torch.inf)
    return Beams(going, node.gather(1, chosen), parent.gather(1, chosen)), done


def _best(score: Tensor, children: Children, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Score, node and parent beam of the `count` best continuations, (B, count) each, best first."""
    users, _, width = children.node.shape
    live = score.unsqueeze(2) > -torch.inf
    total = torch.where(live, score.unsqueeze(2) + children.log_prob, -torch.inf).view(users, -1)
    top, at = total.topk(min(count, total.shape[1]), dim=1)
    pad = (0, count - top.shape[1])
    parts = (top, -torch.inf), (children.node.view(users, -1).gather(1, at), 0), (at // width, 0)
    best, node, parent = (torch.nn.functional.pad(x, pad, value=value) for x, value in parts)
    return best, node, parent


def _finish(done: Hypotheses, score: Tensor, node: Tensor, ends: Tensor, divisor: Tensor) -> Hypotheses:
    """The finished titles with those that end now; only a place among the first K continuations counts."""
    beams = done.leaf.shape[1]
    ended = score[:, :beams].masked_fill(~ends[:, :beams], -torch.inf)
    ranked = torch.cat([done.score, ended / divisor], 1)
    order = ranked.sort(dim=1, descending=True, stable=True)[1][:, :beams]
    leaf = torch.cat([done.leaf, node[:, :beams].masked_fill(ended == -torch.inf, -1)], 1)
    log_prob = torch.cat([done.log_prob, ended], 1)
    return Hypotheses(leaf.gather(1, order), ranked.gather(1, order), log_prob.gather(1, order))


def _advance(state: DecodeState, old: _LiveBeams, chosen: Beams) -> _LiveBeams:
    """The chosen continuations as beams; the nodes that no chain has read yet are read."""
    score, node, parent = chosen
    above, ahead = old.row.gather(1, parent), old.ahead.gather(1, parent) - 1
    row = above + 1
    user, place = ((score > -torch.inf) & (ahead < 0)).nonzero(as_tuple=True)
    if len(user):
        row[user, place], ahead[user, place] = state.read(user, node[user, place], above[user, place])
    return _LiveBeams(score, node, row, ahead)
