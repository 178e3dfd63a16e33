# SPDX-License-Identifier: Apache-2.0
"""The log-probability of every title: the whole trie read behind each prompt, level by level."""

from itertools import pairwise

import torch
from torch import Tensor

from .reader import Reader

_ROWS = 1024  # read at once


def log_probs(reader: Reader) -> Tensor:
    """Of each leaf, for each user.

    The keys and values of all inner nodes are kept: for a user of ML-1M's 3,883 titles those of 11,254 rows.

    Returns:
        (B, N) float32 by node, of the tokens down to it; -inf where the user must not enter.
    """
    trie, users = reader.trie, reader.users
    total = torch.zeros((users, len(trie)), dtype=torch.float32, device=trie.token.device)
    row = torch.arange(users, device=total.device).unsqueeze(1).repeat(1, len(trie))  # (B, N), right once read
    for first, last in pairwise(trie.levels[:-1]):
        inner = first + (~trie.is_leaf[first:last]).nonzero().squeeze(1)
        user = torch.arange(users, device=total.device).repeat_interleave(len(inner))
        for u, node in zip(user.split(_ROWS), inner.repeat(users).split(_ROWS), strict=True):
            if first:
                row[u, node], _ = reader.read(u, node, row[u, trie.parent[node]], chains=False)
            found = reader.children(u, node, row[u, node])
            real = (
                torch.arange(found.node.shape[1], device=u.device) < (trie.first[node + 1] - trie.first[node])[:, None]
            )
            nth, place = real.nonzero(as_tuple=True)
            total[u[nth], found.node[nth, place]] = total[u[nth], node[nth]] + found.log_prob[nth, place]
    return total
