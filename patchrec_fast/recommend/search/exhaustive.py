# SPDX-License-Identifier: Apache-2.0
"""The log-probability of every title: the whole trie read behind each prompt, level by level."""

from itertools import pairwise

import torch
from torch import Tensor

from ..state import DecodeState

_ROWS = 1024  # read at once


def score_all_titles(state: DecodeState) -> Tensor:
    """Of each leaf, for each user.

    The keys and values of all inner nodes are kept: for a user of ML-1M's 3,883 titles those of 11,254 rows.

    Returns:
        (B, N) float32 by node, of the tokens down to it; -inf where the user must not enter.
    """
    trie, users = state.trie, state.users
    total = torch.zeros((users, len(trie)), dtype=torch.float32, device=trie.token.device)
    row = torch.arange(users, device=total.device).unsqueeze(1).repeat(1, len(trie))  # (B, N), right once read
    for first, last in pairwise(trie.levels[:-1]):
        inner = first + (~trie.is_leaf[first:last]).nonzero().squeeze(1)
        user = torch.arange(users, device=total.device).repeat_interleave(len(inner))
        for u, node in zip(user.split(_ROWS), inner.repeat(users).split(_ROWS), strict=True):
            if first:
                row[u, node], _ = state.read(u, node, row[u, trie.parent[node]], chains=False)
            found = state.children(u, node, row[u, node])
            real = (
                torch.arange(found.node.shape[1], device=u.device) < (trie.first[node + 1] - trie.first[node])[:, None]
            )
            nth, place = real.nonzero(as_tuple=True)
            total[u[nth], found.node[nth, place]] = total[u[nth], node[nth]] + found.log_prob[nth, place]
    return total
