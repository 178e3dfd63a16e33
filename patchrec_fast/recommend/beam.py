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

from .reader import Children, Reader

EarlyStopping = bool | Literal["never"]


class Found(NamedTuple):
    """The best titles of each user, best first; -1 and -inf where fewer exist."""

    leaf: Tensor  # (B, k) int64
    score: Tensor  # (B, k) float32, by which they are ordered
    log_prob: Tensor  # (B, k) float32, the sum of the tokens' log-probabilities


class _Beams(NamedTuple):
    """The running beams, (B, K) each; score -inf is no beam."""

    score: Tensor
    node: Tensor
    row: Tensor  # of the node
    ahead: Tensor  # rows after it that are read already: its forced chain


def beam(
    reader: Reader,
    k: int,
    beams: int,
    length_penalty: float = 0.0,
    early_stopping: EarlyStopping = False,
) -> Found:
    """Searches.

    Args:
        k: how many titles to return, at most `beams`.
        beams: how many run side by side.
        length_penalty: a finished title's score is its log-probability over `length ** length_penalty`, the end
            token counted.
        early_stopping: True: done when `beams` titles are finished. False: when the best running beam, ended now,
            would not enter. "never": when it could not even at the trie's full depth. As in transformers; False and
            "never" are the same for a length_penalty of 0.
    """
    running = _start(reader, beams)
    done = _nothing(reader, beams)
    for length in range(1, reader.trie.depth + 1):
        user, place = (running.score > -torch.inf).nonzero(as_tuple=True)
        if not len(user):
            break
        found = reader.children(user, running.node[user, place], running.row[user, place])
        score, node, parent = _best(running.score, user, place, found, 2 * beams)
        ends = reader.trie.is_leaf[node] & (score > -torch.inf)
        done = _finish(done, score, node, ends, length**length_penalty)
        going, chosen = score.masked_fill(ends, -torch.inf)[:, : 2 * beams].sort(dim=1, descending=True, stable=True)
        going, chosen = going[:, :beams], chosen[:, :beams]
        if length_penalty == 0 and early_stopping is not True:
            going = going.masked_fill(going <= done.score[:, k - 1 : k], -torch.inf)
        else:
            longest = reader.trie.depth if early_stopping == "never" and length_penalty > 0 else length
            hopeless = going[:, :1] / longest**length_penalty <= done.score[:, -1:]
            full = done.score[:, -1:] > -torch.inf
            going = going.masked_fill(full & (hopeless | (early_stopping is True)), -torch.inf)
        running = _advance(reader, running, going, node.gather(1, chosen), parent.gather(1, chosen))
    return Found(done.leaf[:, :k], done.score[:, :k], done.log_prob[:, :k])


def _start(reader: Reader, beams: int) -> _Beams:
    shape, device = (reader.users, beams), reader.trie.token.device
    zeros = torch.zeros(shape, dtype=torch.int64, device=device)
    score = torch.full(shape, -torch.inf, device=device)
    score[:, 0] = 0
    root = torch.arange(reader.users, device=device).unsqueeze(1).expand(shape)
    return _Beams(score, zeros, root, zeros)


def _nothing(reader: Reader, beams: int) -> Found:
    leaf = torch.full((reader.users, beams), -1, device=reader.trie.token.device)
    score = torch.full(leaf.shape, -torch.inf, device=leaf.device)
    return Found(leaf, score, score)


def _best(
    score: Tensor,  # (B, K)
    user: Tensor,  # (n,) of the beams that run, and so place
    place: Tensor,
    found: Children,  # of those
    count: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Score, node and parent beam of the `count` best continuations, (B, count) each, best first."""
    users, width = score.shape[0], found.node.shape[1]
    total = score.new_full((*score.shape, width), -torch.inf)
    total[user, place] = score[user, place].unsqueeze(1) + found.log_prob
    nodes = found.node.new_zeros(total.shape)
    nodes[user, place] = found.node
    total, nodes = total.view(users, -1), nodes.view(users, -1)
    top, at = total.topk(min(count, total.shape[1]), dim=1)
    pad = (0, count - top.shape[1])
    parts = (top, -torch.inf), (nodes.gather(1, at), 0), (at // width, 0)
    best, node, parent = (torch.nn.functional.pad(x, pad, value=value) for x, value in parts)
    return best, node, parent


def _finish(done: Found, score: Tensor, node: Tensor, ends: Tensor, divisor: float) -> Found:
    """The finished titles with those that end now; only a place among the first K continuations counts."""
    beams = done.leaf.shape[1]
    ended = score[:, :beams].masked_fill(~ends[:, :beams], -torch.inf)
    ranked = torch.cat([done.score, ended / divisor], 1)
    order = ranked.sort(dim=1, descending=True, stable=True)[1][:, :beams]
    leaf = torch.cat([done.leaf, node[:, :beams].masked_fill(ended == -torch.inf, -1)], 1)
    log_prob = torch.cat([done.log_prob, ended], 1)
    return Found(leaf.gather(1, order), ranked.gather(1, order), log_prob.gather(1, order))


def _advance(reader: Reader, old: _Beams, score: Tensor, node: Tensor, parent: Tensor) -> _Beams:
    """The chosen continuations as beams; the nodes that no chain has read yet are read."""
    above, ahead = old.row.gather(1, parent), old.ahead.gather(1, parent) - 1
    row = above + 1
    user, place = ((score > -torch.inf) & (ahead < 0)).nonzero(as_tuple=True)
    if len(user):
        row[user, place], ahead[user, place] = reader.read(user, node[user, place], above[user, place])
    return _Beams(score, node, row, ahead)
