# SPDX-License-Identifier: Apache-2.0
"""Recommending on a GPU, or as on one, its attention by the Triton kernels: what the CPU's attention gives."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="needs Triton: pip install triton")

import patchrec_kernels.tree_attention as kernels

import patchrec_fast as pf
from patchrec_fast import data
from patchrec_fast.ops.attention import tree
from patchrec_fast.recommend import engine
from tests.hf.conftest import FAMILIES, TINY

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("triton_serves")


@pytest.fixture(scope="module")
def packer():
    """Five short titles, so that searches are short: the interpreter takes a millisecond an instruction."""
    dataset = data.generate(users=40, items=300)
    tokenizer = data.sample_tokenizer(dataset.titles.values())
    short = sorted(dataset.titles, key=lambda item: (len(tokenizer(dataset.titles[item]).input_ids), item))[:5]
    catalogue = pf.Catalogue.from_titles({item: dataset.titles[item] for item in short}, tokenizer)
    prompt = pf.Prompt(tokenizer, instruction="[HISTORY_SEQUENCE]?")
    return pf.Packer(catalogue, prompt, pf.SessionPatches(1))


@pytest.fixture
def launches(monkeypatch):
    """Counts calls of the kernels."""
    seen, launch = [], kernels.tree_attention
    monkeypatch.setattr(kernels, "tree_attention", lambda *args, **options: seen.append(1) or launch(*args, **options))
    return seen


@pytest.mark.parametrize(("family", "method"), [("llama", "beam"), ("gemma2", "beam"), ("llama", "exact")])
def test_recommending(device, packer, launches, monkeypatch, family, method):
    name, special = FAMILIES[family]
    settings = {**TINY, "initializer_range": 0.5, "vocab_size": packer.prompt.num_embeddings, **special}
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**settings)).eval()
    items = packer.catalogue.item_ids.tolist()
    histories = [items[:1], items[:3]]
    expected = pf.Recommender(model, packer).recommend(histories, k=2, method=method)
    assert not launches
    if device.type == "cpu":  # as on a GPU
        monkeypatch.setattr(engine, "_why_not_static", lambda model, device: None)
        monkeypatch.setattr(tree, "choose", lambda impl, device_type, dtype: "triton")
    found = pf.Recommender(model.to(device), packer).recommend(histories, k=2, method=method)
    assert launches
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
