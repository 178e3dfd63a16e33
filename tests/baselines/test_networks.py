# SPDX-License-Identifier: Apache-2.0
"""No state reads a later title or a pad, to the bit; attention against its formula."""

import dataclasses

import numpy as np
import pytest
import torch

from patchrec_fast.baselines import Sequential
from patchrec_fast.baselines.networks import NETWORKS
from patchrec_fast.baselines.recipes import RECIPES, Recipe
from tests.recommend.catalogues import catalogue_of

SMALL = Recipe("softmax", width=16, layers=2, batch=64, rounds=1, learning_rate=0.01, length=12, heads=2, inner=24)
TITLES = 15
each_network = pytest.mark.parametrize("name", NETWORKS)


def network_of(name, seed=0, **changes):
    torch.manual_seed(seed)
    network = NETWORKS[name](TITLES, dataclasses.replace(SMALL, **changes)).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # new embeddings are so small that little would show
    return network


@each_network
@pytest.mark.parametrize("seed", range(5))
def test_no_state_reads_the_future(name, seed):
    rng = np.random.default_rng(seed)
    network, length = network_of(name, seed), int(rng.integers(2, 13))
    titles = torch.from_numpy(rng.integers(0, TITLES, (7, length)))
    before = network(titles)
    for place in range(length - 1):
        other = titles.clone()
        other[:, place + 1 :] = torch.from_numpy(rng.integers(0, TITLES, (7, length - place - 1)))
        after = network(other)
        assert torch.equal(before[:, : place + 1], after[:, : place + 1])
        assert not torch.equal(before, after) or torch.equal(titles, other)


@each_network
@pytest.mark.parametrize("seed", range(3))
def test_pads_and_neighbours_change_nothing(name, seed):
    """A history alone has the scores that it has beside longer ones."""
    rng = np.random.default_rng(seed)
    catalogue = catalogue_of({item: (item,) for item in range(TITLES)})
    ranker = Sequential(catalogue, network_of(name, seed, tied=seed % 2 == 0))
    histories = [rng.integers(0, TITLES, size) for size in rng.integers(1, 30, 9)]
    together = ranker.scores(histories)
    for history, scores in zip(histories, together, strict=True):
        np.testing.assert_allclose(ranker.scores([history])[0], scores, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(ranker.scores([history]), ranker.scores([history[-12:]]))  # all that is read


@each_network
def test_dropout_is_for_training(name):
    network = network_of(name).train()
    ranker = Sequential(catalogue_of({item: (item,) for item in range(TITLES)}), network)
    np.testing.assert_array_equal(ranker.scores([[1, 2, 3]]), ranker.scores([[1, 2, 3]]))
    assert network.training
    assert not torch.equal(network(torch.tensor([[1, 2, 3]])), network(torch.tensor([[1, 2, 3]])))


@each_network
@pytest.mark.parametrize("tied", [True, False])
def test_logits_of_pairs(name, tied):
    network = network_of(name, tied=tied)
    states, titles = torch.randn(6, 16), torch.randint(0, TITLES, (6, 2))
    torch.testing.assert_close(network.pair_logits(states, titles), network.logits(states).gather(1, titles))


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_sasrec_by_its_formula(heads):
    """In float64, a place and a head at a time."""
    network = network_of("sasrec", heads=heads).double()
    titles = torch.randint(0, TITLES, (10,))
    states = [network.titles.weight[title] * 4 + network.places.weight[at] for at, title in enumerate(titles)]
    for block in network.blocks:
        normed = [block.before(state) for state in states]
        after = []
        for at, own in enumerate(normed):
            seen = torch.stack(states[: at + 1])
            query, (key, value) = block.query(own), block.key_value(seen).chunk(2, -1)
            parts = []
            for q, k, v in zip(*(each.chunk(heads, -1) for each in (query, key, value)), strict=True):
                parts.append(torch.softmax(k @ q / (16 / heads) ** 0.5, 0) @ v)
            mixed = block.between(own + block.mix(torch.cat(parts)))
            after.append(mixed + block.narrow(torch.relu(block.wide(mixed))))
        states = after
    expected = torch.stack([network.norm(state) for state in states])
    torch.testing.assert_close(network(titles[None])[0], expected)


def test_another_catalogue():
    with pytest.raises(ValueError, match="catalogue's 3 titles, got one of 15"):
        Sequential(catalogue_of({item: (item,) for item in range(3)}), network_of("gru4rec"))


def test_the_papers_recipes():
    """As the code of the paper's footnote trains: one negative, one block of width 64, an output layer."""
    for recipes in RECIPES.values():
        paper = recipes["paper"]
        assert (paper.loss, paper.width, paper.layers, paper.tied, paper.batch) == ("bce", 64, 1, False, 256)
        assert recipes["strong"].loss == "softmax"
