# SPDX-License-Identifier: Apache-2.0
"""How many titles are asked for does not change which comes first."""

import numpy as np
import pytest

import patchrec_fast as pf
from patchrec_fast import data
from patchrec_fast.recommend import engine
from tests.recommend import catalogues
from tests.recommend.test_catalogues import renew, world  # noqa: F401

KS = (1, 5, 20)


def firsts(rec, histories, **options):
    """The first titles for each k: one list, or the lists differ."""
    found = [rec.recommend(histories, k, **options) for k in KS]
    for each in found[1:]:
        np.testing.assert_array_equal(each.items[:, 0], found[0].items[:, 0])
        np.testing.assert_allclose(each.scores[:, 0], found[0].scores[:, 0], atol=1e-4)
    return found[0].items[:, 0]


@pytest.mark.parametrize("seed", range(12))
def test_random_models_and_catalogues(world, monkeypatch, seed):  # noqa: F811
    """Some of 300 titles, so that 20 beams are few."""
    rng = np.random.default_rng(seed)
    renew(world, seed)
    if seed % 2:
        titles = catalogues.random_titles(seed, world.tokens)
    else:
        letters = rng.choice(world.tokens, 12, replace=False)
        titles = {item: catalogues.draw(rng, letters, rng.integers(1, 7)) for item in range(300)}
    rec = pf.Recommender(world.model, pf.Packer(catalogues.catalogue_of(titles), world.prompt, pf.Text()))
    histories = [rng.choice(list(titles), rng.integers(1, 4)).tolist() for _ in range(4)]
    options = {"normalize": str(rng.choice(["vocab", "catalogue", "children"])), "exclude_seen": bool(rng.integers(2))}
    firsts(rec, histories, method="exact", **options)
    firsts(rec, histories, method="diverse", **options)
    plain = firsts(rec, histories, **options)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_why_not_static", lambda model, device: None)
        np.testing.assert_array_equal(firsts(rec, histories, **options), plain)


@pytest.mark.parametrize("name", ["ml-100k", "ml-1m", "goodreads"])
def test_real_catalogues(make_model, data_dir, name):
    dataset = data.load(data_dir / name)
    tokenizer = data.sample_tokenizer(dataset.titles.values())
    prompt = pf.Prompt(tokenizer, instruction="Seen [HISTORY_SEQUENCE]. Next?")
    catalogue = pf.Catalogue.from_titles(dataset.titles, tokenizer)
    model = make_model(vocab_size=prompt.num_embeddings)
    rec = pf.Recommender(model, pf.Packer(catalogue, prompt, pf.SessionPatches(5), max_items=30))
    flat, offsets = dataset.split("test").histories
    histories = [flat[offsets[user] : offsets[user + 1]] for user in range(0, len(offsets) - 1, len(offsets) // 3)][:3]
    beam = firsts(rec, histories)
    exact = firsts(rec, histories, method="exact")
    assert len(beam) == len(exact) == 3


def test_an_evaluation_with_other_beams_is_not_gone_on_with(recommender, histories, monkeypatch, tmp_path):
    """Of a version that has another default."""
    samples = histories, [1] * len(histories)
    pf.evaluate(recommender, samples, (10,), out=tmp_path)
    monkeypatch.setattr("patchrec_fast.recommend.recommender.default_beams", lambda k: k)
    with pytest.raises(ValueError, match=r"another run.*beams"):
        pf.evaluate(recommender, samples, (10,), out=tmp_path)
