# SPDX-License-Identifier: Apache-2.0
"""Exact search against the scores of every title, and those against an untouched model."""

import numpy as np
import pytest

import patchrec_fast as pf
from tests.recommend import decoders
from tests.recommend.catalogues import catalogue_of

NORMALIZE = ["vocab", "catalogue", "children"]


def best(rec, table, k):
    """The first items of the k best titles of each user, and the scores of all titles, falling."""
    catalogue = rec.packer.catalogue
    first = [items[0] for items in decoders.titles(rec.packer).values()]
    scores = table[:, catalogue.index(first)]
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.array(first)[order[:, :k]], np.take_along_axis(scores, order, 1)


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma2", "gemma3"])
def test_scores(make_model, packer, histories, family):
    """Brute force of another kind: every text alone, in float64, by transformers' eager attention."""
    history = histories[2]
    table = pf.Recommender(make_model(family), packer).scores([history])[0]
    exact = make_model(family).double()
    exact.set_attn_implementation("eager")
    alone = decoders.Alone(exact, packer, history)
    for title, items in list(decoders.titles(packer).items())[::15]:
        for item in items:
            assert abs(table[packer.catalogue.index([item])[0]] - alone.title(title)) < 1e-4


@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("k", [1, 7, 20])
def test_exact_is_brute_force(recommender, histories, normalize, k):
    found = recommender.recommend(histories, k=k, method="exact", normalize=normalize)
    items, scores = best(recommender, recommender.scores(histories, normalize=normalize), k)
    np.testing.assert_array_equal(found.items, items)
    np.testing.assert_allclose(found.log_probs, scores[:, :k], atol=1e-4)


@pytest.mark.parametrize("family", ["gemma2", "llama-tied", "mistral"])
def test_families(make_model, packer, histories, family):
    """A capped head has no bound over the tokens that no title uses."""
    rec = pf.Recommender(make_model(family), packer)
    found = rec.recommend(histories, k=5, method="exact")
    np.testing.assert_array_equal(found.items, best(rec, rec.scores(histories), 5)[0])


def test_movies(make_model, movies):
    """All 3,883 titles of ML-1M."""
    rec = pf.Recommender(make_model(vocab_size=movies.packer.prompt.num_embeddings), movies.packer)
    users = movies.histories[:1]
    found = rec.recommend(users, k=20, method="exact", normalize="catalogue")
    items, scores = best(rec, rec.scores(users, normalize="catalogue"), 20)
    np.testing.assert_array_equal(found.items, items)
    np.testing.assert_allclose(found.log_probs, scores[:, :20], atol=1e-4)


def test_not_everything_is_scored(recommender, histories):
    """A sharp model leaves most of the trie alone."""
    found = recommender.recommend(histories, k=1, method="exact", normalize="children")
    assert (found.num_scored < len(recommender.trie) / 2).all()


def test_children_add_up_to_one(recommender, histories):
    table = recommender.scores(histories, normalize="children")
    _, scores = best(recommender, table, 1)
    np.testing.assert_allclose(np.exp(scores.astype(np.float64)).sum(1), 1, atol=1e-5)


def test_exact_is_at_least_beam(recommender, histories):
    exact, beam = (recommender.recommend(histories, k=10, method=method).scores for method in ("exact", "beam"))
    assert (exact >= beam - 1e-4).all()


def test_many_beams_are_exact(recommender, histories):
    """No beam is ever cut when there are as many as titles."""
    count = len(decoders.titles(recommender.packer))
    beam = recommender.recommend(histories, k=5, beams=count)
    exact = recommender.recommend(histories, k=5, method="exact")
    np.testing.assert_array_equal(beam.items, exact.items)


def test_a_tie_counts_against_the_item(recommender, histories, monkeypatch):
    catalogue = recommender.packer.catalogue
    flat = np.zeros((1, len(catalogue)), np.float32)
    monkeypatch.setattr(type(recommender), "scores", lambda *args, **options: flat)
    titles = len(decoders.titles(recommender.packer))
    assert recommender.rank(histories[:1], catalogue.item_ids[:1]).tolist() == [titles]


def test_rank(recommender, histories):
    exact = recommender.recommend(histories, k=9, method="exact").items
    for place in (0, 8):
        np.testing.assert_array_equal(recommender.rank(histories, exact[:, place]), place + 1)
    shared = recommender.rank([histories[0]] * 2, [7, 901])
    assert shared[0] == shared[1]
    with pytest.raises(ValueError, match="targets: got 1 for 5 histories"):
        recommender.rank(histories, [7])


def test_long_titles(sample, make_model):
    """More rounds than a 64-bit number can be grown by half."""
    length, rng = 120, np.random.default_rng(0)
    tokens = rng.choice(np.unique(sample.catalogue.token_ids), 6)
    stem = tuple(rng.choice(tokens, length).tolist())
    titles = {0: (*stem, tokens[0]), 1: (*stem, tokens[1]), 2: stem[:1], 3: stem[:30]}
    packer = pf.Packer(catalogue_of(titles), sample.prompt, pf.Text())
    rec = pf.Recommender(make_model(num_hidden_layers=1), packer)
    table = rec.scores([[2]])
    for k in (1, 4):
        found = rec.recommend([[2]], k=k, method="exact")
        np.testing.assert_array_equal(found.items, best(rec, table, k)[0])
