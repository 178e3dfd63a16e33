# SPDX-License-Identifier: Apache-2.0
"""Heads whose values are narrower or wider than queries, and layers whose heads differ."""

import numpy as np
import pytest
import torch
import transformers

import patchrec_fast as pf
from patchrec_fast.hf import decode_cache
from patchrec_fast.ops.attention.tree_reference import tree_attention
from tests.recommend import decoders
from tests.recommend.test_static_beam import assert_same, both

METHODS = ["beam", "exact", "diverse"]
CLASSES = [("DeepseekV3", 8), ("DeepseekV3", 24), ("DeepseekV2", 8), ("Glm4MoeLite", 8), ("Youtu", 8)]


def latent(name, vocabulary, values):
    """A tiny model of multi-head latent attention: queries of 16, and values of so many."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 24, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2}
    sizes |= {"n_group": 1, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1}
    sizes |= {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": values}
    sizes |= {"max_position_embeddings": 512, "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(0)
    kind, config = getattr(transformers, f"{name}ForCausalLM", None), getattr(transformers, f"{name}Config", None)
    if kind is None:
        pytest.skip(f"this transformers has no {name}")
    model = kind(config(vocab_size=vocabulary, initializer_range=0.3, **sizes)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(0.25 * torch.randn(parameter.shape, generator=generator))
    return model


def assert_right(model, packer, history):
    """Log-probabilities of an untouched model's calls on whole texts."""
    after, names = decoders.Alone(model, packer, history), decoders.titles(packer)
    rec = pf.Recommender(model, packer)
    expected = [after.title(tokens) for tokens in names]
    place = packer.catalogue.index([items[0] for items in names.values()])
    np.testing.assert_allclose(rec.scores([history])[0, place], expected, atol=1e-4, rtol=1e-5)
    for method in METHODS:
        found = rec.recommend([history, history[:1]], k=3, method=method)
        wanted = [max(v for v, n in zip(expected, names.values(), strict=True) if item in n) for item in found.items[0]]
        np.testing.assert_allclose(found.log_probs[0], wanted, atol=1e-4, rtol=1e-5)


@pytest.fixture(scope="module")
def few(sample):
    catalogue = pf.Catalogue.from_titles({item: sample.dataset.titles[item] for item in range(1, 6)}, sample.tokenizer)
    return pf.Packer(catalogue, sample.prompt, pf.SessionPatches(2))


@pytest.mark.parametrize(("name", "values"), CLASSES)
def test_latent_attention(few, name, values):
    assert_right(latent(name, few.prompt.num_embeddings, values), few, [1, 5, 3, 2])


@pytest.mark.parametrize("values", [8, 24])
def test_in_steps_of_one_shape(monkeypatch, few, values):
    model = latent("DeepseekV3", few.prompt.num_embeddings, values)
    assert_same(*both(monkeypatch, pf.Recommender(model, few), [[1, 5, 3], [2]], k=4))


@pytest.mark.parametrize("values", [8, 24])
def test_where_the_fused_operator_serves(monkeypatch, few, values):
    """By its reference in its place, which takes one width."""
    model = latent("DeepseekV3", few.prompt.num_embeddings, values)
    expected = pf.Recommender(model, few).recommend([[1, 5, 3], [2]], k=4)
    monkeypatch.setattr(decode_cache, "tree_attention", tree_attention)
    found = pf.Recommender(model, few).recommend([[1, 5, 3], [2]], k=4)
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)


def test_layers_whose_heads_differ(monkeypatch, make_model, few):
    """In number of key heads, and in width."""
    model = make_model(num_hidden_layers=3, initializer_range=0.3)
    for layer, (heads, width) in zip(model.model.layers, [(2, 8), (1, 8), (2, 16)], strict=True):
        attention, queries = layer.self_attn, model.config.num_attention_heads
        attention.head_dim, attention.scaling = width, width**-0.5
        attention.num_key_value_groups = queries // heads
        d = model.config.hidden_size
        for projection, count in (("q_proj", queries), ("k_proj", heads), ("v_proj", heads)):
            setattr(attention, projection, torch.nn.Linear(d, count * width, bias=False))
        attention.o_proj = torch.nn.Linear(queries * width, d, bias=False)
    turned = model.model.layers[2].self_attn.forward

    def forward(hidden_states, position_embeddings, **options):
        cos, sin = (torch.cat([x, x], -1) for x in position_embeddings)
        return turned(hidden_states, position_embeddings=(cos, sin), **options)

    model.model.layers[2].self_attn.forward = forward
    assert_right(model, few, [1, 5, 3, 2])
    assert_same(*both(monkeypatch, pf.Recommender(model, few), [[1, 5, 3], [2]], k=4))
