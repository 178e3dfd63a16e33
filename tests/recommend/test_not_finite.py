# SPDX-License-Identifier: Apache-2.0
"""A model whose logits are not finite says so, whatever asks it; a title of probability 0 is no error."""

import numpy as np
import pytest
import torch

import patchrec_fast as pf
from patchrec_fast.recommend import engine

NAN, INF = float("nan"), float("inf")
ASK = {
    "beam": lambda rec, histories, **options: rec.recommend(histories, k=5, **options),
    "static": lambda rec, histories, **options: rec.recommend(histories, k=5, cuda_graphs=True, **options),
    "exact": lambda rec, histories, **options: rec.recommend(histories, k=5, method="exact", **options),
    "diverse": lambda rec, histories, **options: rec.recommend(histories, k=5, method="diverse", **options),
    "scores": lambda rec, histories, **options: rec.scores(histories, **options),
    "rank": lambda rec, histories, **options: rec.rank(histories, [1] * len(histories), **options),
    "evaluate": lambda rec, histories, **options: pf.evaluate(
        rec, (histories, [1] * len(histories)), ks=(5,), progress=False, **options
    ),
}


@pytest.fixture(params=ASK)
def ask(request, monkeypatch):
    monkeypatch.setattr(
        engine, "_why_not_static", lambda model, device: None if request.param == "static" else "on a CPU"
    )
    return ASK[request.param]


@pytest.fixture
def rec(make_model, packer):
    return pf.Recommender(make_model(), packer)


def spoil(parameter, value, rows=slice(None)):
    with torch.no_grad():
        parameter[rows] = value


@pytest.fixture
def histories(histories):
    return histories[:3:2]


@pytest.mark.parametrize(("normalize", "value"), [("vocab", INF), ("catalogue", NAN), ("children", NAN)])
def test_everywhere(rec, histories, ask, normalize, value):
    spoil(rec.model.model.norm.weight, value)
    with pytest.raises(ValueError, match=r"model: its logits are not finite .* for 2 of 2 users, the first at place 0"):
        ask(rec, histories, normalize=normalize)


@pytest.mark.parametrize(("value", "bias"), [(NAN, False), (INF, True)])
def test_one_token_of_the_vocabulary(rec, histories, ask, value, bias):
    """That no title uses: its logit counts in every sum, and exact search meets it late where the head has a bias."""
    token = next(t for t in range(rec.packer.prompt.num_embeddings) if t not in rec.trie.used)
    head = rec.model.lm_head
    head.bias = torch.nn.Parameter(torch.zeros(len(head.weight))) if bias else None
    spoil(head.bias if bias else head.weight, value, token)
    with pytest.raises(ValueError, match="logits are not finite"):
        ask(rec, histories)


def test_minus_infinity_everywhere(rec, histories, ask):
    rec.model.lm_head.bias = torch.nn.Parameter(torch.full((rec.packer.prompt.num_embeddings,), -INF))
    with pytest.raises(ValueError, match="logits are not finite"):
        ask(rec, histories)


def test_one_user(rec, histories, ask):
    """The last one, by a token that only that history holds; calls of few shapes may read NaN keys at weight 0."""
    batches = [set(rec.packer.pack([history]).ids.tolist()) for history in histories]
    token = min(batches[-1] - set.union(*batches[:-1]) - set(rec.trie.token[1 : rec.trie.levels[2]].tolist()))
    weight = rec.model.get_input_embeddings().weight
    spoil(weight, NAN, token)
    with pytest.raises(ValueError, match=r"not finite .* for (1 of 2 users, the first at place 1|2 of 2)"):
        ask(rec, histories)


def test_one_branch(make_model, sample):
    """Reading one title's first token goes wrong; whoever has to read it to answer says so, and no other does."""
    catalogue = pf.Catalogue.from_titles({1: "Jaws", 2: "Alien", 3: "Heat"}, sample.tokenizer)
    rec = pf.Recommender(make_model(), pf.Packer(catalogue, sample.prompt, pf.Text()))
    lonely = set(catalogue.token_ids[: catalogue.offsets[1]].tolist()) - set(rec.packer.pack([[2]]).ids.tolist())
    first = int(catalogue.token_ids[0])
    if first not in lonely:
        pytest.skip("the tokenizer begins the titles alike")
    spoil(rec.model.get_input_embeddings().weight, NAN, first)
    for method in ("beam", "exact"):
        with pytest.raises(ValueError, match="logits are not finite"):
            rec.recommend([[2]], k=3, method=method)


def test_a_token_of_probability_0(make_model, packer, histories):
    """Its titles are never answered, and nothing else changes."""
    rec = pf.Recommender(make_model(), packer)
    before = rec.recommend(histories, k=300, method="exact", normalize="vocab")
    token = int(packer.catalogue.token_ids[packer.catalogue.offsets[packer.catalogue.index(before.items[0, :1])[0]]])
    rec.model.lm_head.bias = torch.nn.Parameter(torch.zeros(packer.prompt.num_embeddings))
    spoil(rec.model.lm_head.bias, -INF, token)
    for method in ("beam", "exact", "diverse"):
        found = rec.recommend(histories, k=5, method=method)
        assert (found.items >= 0).all()
        assert before.items[0, 0] not in found.items[0]
    assert np.isneginf(rec.scores(histories)[0]).any()


def test_a_new_recommender_says_so(make_model, packer):
    model = make_model()
    spoil(model.model.norm.weight, NAN)
    with pytest.raises(ValueError, match=r"logits of LlamaForCausalLM are not finite"):
        pf.Recommender(model, packer)
