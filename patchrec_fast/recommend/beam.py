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

from .questions import Children
from .reader import Prompts, Reader
from .trie import Trie

EarlyStopping = bool | Literal["never"]


class Found(NamedTuple):
    """The best titles of each user, best first; -1 and -inf where fewer exist; a score of NaN says that something on
    the way was not finite, and the user's answers mean nothing."""

    leaf: Tensor  # (B, k) int64
    score: Tensor  # (B, k) float32, by which they are ordered
    log_prob: Tensor  # (B, k) float32, the sum of the tokens' log-probabilities

    @classmethod
    def nothing(cls, users: int, count: int, device: torch.device) -> Found:
        leaf = torch.full((users, count), -1, device=device)
        score = torch.full(leaf.shape, -torch.inf, dtype=torch.float32, device=device)
        return cls(leaf, score, score.clone())


class Rules(NamedTuple):
    """What decides which beams go on."""

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


class Chosen(NamedTuple):
    """The beams that go on, (B, K) each; score -inf is no beam."""

    score: Tensor
    node: Tensor
    parent: Tensor  # which of the beams before it


class _Beams(NamedTuple):
    """The running beams, (B, K) each; score -inf is no beam."""

    score: Tensor
    node: Tensor
    row: Tensor  # of the node
    ahead: Tensor  # rows after it that are read already: its forced chain


def beam(reader: Reader, rules: Rules) -> Found:
    """Searches."""
    shape, device = (reader.users, rules.beams), reader.trie.token.device
    chosen, done = first_step(reader, rules)
    penalties = divisors(rules, reader.trie)
    root = torch.arange(reader.users, device=device).unsqueeze(1).expand(shape)
    running = _advance(reader, _Beams(*chosen[:2], root, torch.zeros_like(root)), chosen)
    for length in range(2, reader.trie.depth + 1):
        user, place = (running.score > -torch.inf).nonzero(as_tuple=True)
        if not len(user):
            break
        found = reader.children(user, running.node[user, place], running.row[user, place])
        strips = found.strips(user, place, shape)
        chosen, done = choose(rules, reader.trie, running.score, strips, done, penalties[length], penalties[-1])
        running = _advance(reader, running, chosen)
    return best(rules, done)


def first_step(prompts: Prompts, rules: Rules) -> tuple[Chosen, Found]:
    """From the prompts to the first tokens; `parent` is 0."""
    user = torch.arange(prompts.users, device=prompts.trie.token.device)
    found = prompts.children(user, torch.zeros_like(user), user)
    shape = (prompts.users, rules.beams)
    score = found.log_prob.new_full(shape, -torch.inf)
    score[:, 0] = 0
    strips = found.strips(user, torch.zeros_like(user), shape)
    penalties = divisors(rules, prompts.trie)
    nothing = Found.nothing(*shape, user.device)
    return choose(rules, prompts.trie, score, strips, nothing, penalties[1], penalties[-1])


def divisors(rules: Rules, trie: Trie) -> Tensor:
    """(depth + 1,) float32: what the log-probability of a title of each length is divided by."""
    lengths = range(1, trie.depth + 1)
    powers = [1.0, *(length**rules.length_penalty for length in lengths)]
    return torch.tensor(powers, dtype=torch.float32, device=trie.token.device)


def best(rules: Rules, done: Found) -> Found:
    """The k first."""
    return Found(*(column[:, : rules.k] for column in done))


def choose(
    rules: Rules,
    trie: Trie,
    score: Tensor,  # (B, K) of the beams
    strips: Children,  # (B, K, C) theirs
    done: Found,  # (B, K)
    divisor: Tensor,  # of titles that end now
    last_divisor: Tensor,  # of the longest
) -> tuple[Chosen, Found]:
    """One step: the beams that go on, and the finished titles with those that end now. Waits for nobody."""
    beams = rules.beams
    total, node, parent = _best(score, strips, 2 * beams)
    ends = (trie.is_leaf[node] & (total > -torch.inf)) | total.isnan()  # NaN sorts before all: it stays, and is seen
    done = _finish(done, total, node, ends, divisor)
    going, chosen = total.masked_fill(ends, -torch.inf).sort(dim=1, descending=True, stable=True)
    going, chosen = going[:, :beams], chosen[:, :beams]
    if rules.length_penalty == 0 and rules.early_stopping is not True:
        going = going.masked_fill(going <= done.score[:, rules.k - 1 : rules.k], -torch.inf)
    else:
        far = rules.early_stopping == "never" and rules.length_penalty > 0
        hopeless = going[:, :1] / (last_divisor if far else divisor) <= done.score[:, -1:]
        full = done.score[:, -1:] > -torch.inf
        going = going.masked_fill(full & (hopeless | (rules.early_stopping is True)), -torch.inf)
    return Chosen(going, node.gather(1, chosen), parent.gather(1, chosen)), done


def _best(score: Tensor, strips: Children, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Score, node and parent beam of the `count` best continuations, (B, count) each, best first."""
    users, _, width = strips.node.shape
    live = score.unsqueeze(2) > -torch.inf
    total = torch.where(live, score.unsqueeze(2) + strips.log_prob, -torch.inf).view(users, -1)
    top, at = total.topk(min(count, total.shape[1]), dim=1)
    pad = (0, count - top.shape[1])
    parts = (top, -torch.inf), (strips.node.view(users, -1).gather(1, at), 0), (at // width, 0)
    best, node, parent = (torch.nn.functional.pad(x, pad, value=value) for x, value in parts)
    return best, node, parent


def _finish(done: Found, score: Tensor, node: Tensor, ends: Tensor, divisor: Tensor) -> Found:
    """The finished titles with those that end now; only a place among the first K continuations counts."""
    beams = done.leaf.shape[1]
    ended = score[:, :beams].masked_fill(~ends[:, :beams], -torch.inf)
    ranked = torch.cat([done.score, ended / divisor], 1)
    order = ranked.sort(dim=1, descending=True, stable=True)[1][:, :beams]
    leaf = torch.cat([done.leaf, node[:, :beams].masked_fill(ended == -torch.inf, -1)], 1)
    log_prob = torch.cat([done.log_prob, ended], 1)
    return Found(leaf.gather(1, order), ranked.gather(1, order), log_prob.gather(1, order))


def _advance(reader: Reader, old: _Beams, chosen: Chosen) -> _Beams:
    """The chosen continuations as beams; the nodes that no chain has read yet are read."""
    score, node, parent = chosen
    above, ahead = old.row.gather(1, parent), old.ahead.gather(1, parent) - 1
    row = above + 1
    user, place = ((score > -torch.inf) & (ahead < 0)).nonzero(as_tuple=True)
    if len(user):
        row[user, place], ahead[user, place] = reader.read(user, node[user, place], above[user, place])
    return _Beams(score, node, row, ahead)
