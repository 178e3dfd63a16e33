# SPDX-License-Identifier: Apache-2.0
"""Beam search gives transformers' hypotheses in transformers' order."""

import os

import numpy as np
import pytest
import torch

import patchrec_fast as pf
from tests.recommend import decoders

FAMILIES = ["llama-tied", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3"]
SETTINGS = [(0.0, False), (0.0, "never"), (1.0, False), (1.0, "never"), (0.5, False), (-0.5, "never")]
USERS = int(os.environ.get("PATCHREC_FAST_TEST_USERS", "3"))  # of ML-1M, for each family


def assert_same(model, packer, histories, beams, **options):
    """Items, order, and scores within 1e-4 and, where they are far below zero, 16 roundings of float32."""
    mine = pf.Recommender(model, packer).recommend(histories, beams, beams=beams, **options)
    for user, history in enumerate(histories):
        items, scores = decoders.generate(model, packer, history, beams, **options)
        assert mine.items[user].tolist() == items
        np.testing.assert_allclose(mine.scores[user], scores, atol=1e-4, rtol=16 * 2.0**-24)


@pytest.mark.parametrize(("length_penalty", "early_stopping"), SETTINGS)
def test_every_setting(make_model, packer, histories, length_penalty, early_stopping):
    options = {"length_penalty": length_penalty, "early_stopping": early_stopping}
    assert_same(make_model(), packer, histories, 6, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(make_model, packer, histories, family):
    """Sliding windows are shorter than every prompt, and than the longest title."""
    assert_same(make_model(family), packer, histories, 5, length_penalty=1.0)


def test_text(make_model, sample, histories):
    packer = pf.Packer(sample.catalogue, sample.prompt, pf.Text())
    assert_same(make_model(), packer, histories, 4, length_penalty=0.0, early_stopping="never")


@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_movies(make_model, movies, family):
    """Real prompts, the whole vocabulary, 20 beams."""
    model = make_model(family.lower(), vocab_size=movies.packer.prompt.num_embeddings)
    step = len(movies.histories) // USERS
    assert_same(model, movies.packer, movies.histories[::step][:USERS], 20, length_penalty=0.0, early_stopping="never")


def test_early_stopping(make_model, packer, histories):
    """Where transformers counts no ghost as finished: a beam that has ended goes on there, at -1e9, if too few live."""
    model = make_model()
    rec, compared = pf.Recommender(model, packer), 0
    options = {"length_penalty": 1.0, "early_stopping": True}
    for beams in (2, 3):
        mine = rec.recommend(histories, beams, beams=beams, **options)
        for user, history in enumerate(histories):
            items, scores = decoders.generate(model, packer, history, beams, **options)
            if min(scores) > -1e6:
                assert mine.items[user].tolist() == items
                compared += 1
    assert compared > 1


def test_more_beams_than_answers(recommender, histories):
    wide = recommender.recommend(histories, k=8, beams=8)
    narrow = recommender.recommend(histories, k=3, beams=8)
    np.testing.assert_array_equal(narrow.items, wide.items[:, :3])
    assert (narrow.num_scored <= wide.num_scored).all()


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
@pytest.mark.parametrize("method", ["beam", "exact", "diverse"])
def test_a_batch_is_its_users(make_model, packer, histories, family, method):
    rec = pf.Recommender(make_model(family), packer)
    together = rec.recommend(histories, k=5, method=method)
    for user, history in enumerate(histories):
        alone = rec.recommend([history], k=5, method=method)
        np.testing.assert_array_equal(together.items[user], alone.items[0])
        np.testing.assert_allclose(together.scores[user], alone.scores[0], atol=1e-4)


@pytest.mark.parametrize("method", ["beam", "exact", "diverse"])
def test_bfloat16(make_model, packer, histories, method):
    rec = pf.Recommender(make_model().bfloat16(), packer)
    found = rec.recommend(histories, k=5, method=method)
    assert (found.items >= 0).all()
    assert (np.diff(found.scores) <= 0).all()


def test_scores_are_the_titles_own(make_model, packer, histories):
    """Each returned log-probability is what an untouched model in float64 gives the title."""
    model = make_model("mistral")
    found = pf.Recommender(model, packer).recommend(histories, k=3)
    by_item = {items[0]: title for title, items in decoders.titles(packer).items()}
    exact = make_model("mistral").double()
    exact.set_attn_implementation("eager")
    for user, history in enumerate(histories):
        alone = decoders.Alone(exact, packer, history)
        for item, log_prob in zip(found.items[user].tolist(), found.log_probs[user], strict=True):
            assert abs(alone.title(by_item[item]) - log_prob) < 1e-4


def test_the_model_is_not_kept(recommender, histories):
    assert not recommender.model.get_output_embeddings().__dict__.get("forward")
    assert torch.is_grad_enabled()
