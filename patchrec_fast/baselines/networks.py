# SPDX-License-Identifier: Apache-2.0
"""Networks over title numbers: the state at each place has read the titles up to it and no later one.

So the places behind a shorter row's last title may hold anything: no state that is used has read them.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .recipes import Recipe

_INIT = 0.02  # standard deviation of new weights


class Network(nn.Module):
    """titles (B, L) int64, numbers below A -> states (B, L, d); `logits` scores the title that comes next.

    Attributes:
        recipe: its shape, and how it is trained.
        titles: the embedding of A titles.
        output: of the states; None where the scores are inner products with `titles`.
    """

    def __init__(self, num_titles: int, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.titles = nn.Embedding(num_titles, recipe.width)
        self.output = None if recipe.tied else nn.Linear(recipe.width, num_titles)
        self.dropout = nn.Dropout(recipe.dropout)

    def logits(self, states: Tensor) -> Tensor:
        """(..., d) -> (..., A)."""
        return F.linear(states, self.titles.weight) if self.output is None else self.output(states)

    def pair_logits(self, states: Tensor, titles: Tensor) -> Tensor:
        """(B, d) and (B, n) int64 -> (B, n): the logits of these titles alone."""
        weight = self.titles.weight if self.output is None else self.output.weight
        found = (weight[titles] @ states[:, :, None]).squeeze(-1)
        return found if self.output is None else found + self.output.bias[titles]


class SASRec(Network):
    """Self-attention over the history (Kang and McAuley 2018), with the authors' blocks."""

    def __init__(self, num_titles: int, recipe: Recipe) -> None:
        super().__init__(num_titles, recipe)
        self.places = nn.Embedding(recipe.length, recipe.width)
        self.blocks = nn.ModuleList(Block(recipe) for _ in range(recipe.layers))
        self.norm = nn.LayerNorm(recipe.width)
        _init(self)

    def forward(self, titles: Tensor) -> Tensor:
        states = self.titles(titles) * self.titles.embedding_dim**0.5 + self.places.weight[: titles.shape[1]]
        states = self.dropout(states)
        for block in self.blocks:
            states = block(states)
        return self.norm(states)


class Block(nn.Module):
    """q = norm(x); x = q + attention(q, x, x); x = norm(x); x = x + W2 relu(W1 x)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.heads, self.dropout = recipe.heads, nn.Dropout(recipe.dropout)
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value, self.mix = (nn.Linear(width, n * width) for n in (1, 2, 1))
        self.wide, self.narrow = nn.Linear(width, recipe.inner), nn.Linear(recipe.inner, width)

    def forward(self, states: Tensor) -> Tensor:
        normed = self.before(states)
        key, value = self.key_value(states).chunk(2, dim=-1)
        query, key, value = (
            each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (self.query(normed), key, value)
        )
        dropped = self.dropout.p if self.training else 0.0
        read = F.scaled_dot_product_attention(query, key, value, dropout_p=dropped, is_causal=True)
        states = self.between(normed + self.mix(read.transpose(1, 2).flatten(2)))
        return states + self.dropout(self.narrow(self.dropout(F.relu(self.wide(states)))))


class GRU4Rec(Network):
    """A gated recurrent network over the history (Hidasi et al. 2016)."""

    def __init__(self, num_titles: int, recipe: Recipe) -> None:
        super().__init__(num_titles, recipe)
        self.recurrent = nn.GRU(recipe.width, recipe.width, recipe.layers, batch_first=True)
        _init(self)

    def forward(self, titles: Tensor) -> Tensor:
        states: Tensor = self.recurrent(self.dropout(self.titles(titles)))[0]
        return self.dropout(states)


NETWORKS: dict[str, type[Network]] = {"sasrec": SASRec, "gru4rec": GRU4Rec}


def _init(network: Network) -> None:
    """Embeddings small, so that the first scores differ little; linear and recurrent layers keep PyTorch's."""
    for module in network.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=_INIT)
