# SPDX-License-Identifier: Apache-2.0
"""Tiny random models of each family over the generated sample, and real ML-1M prompts."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

import patchrec_fast as pf
from patchrec_fast import data
from tests.hf.conftest import FAMILIES, TINY

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="session")
def sample():
    dataset = data.generate(users=40, items=300)
    tokenizer = data.sample_tokenizer(dataset.titles.values())
    titles = dict(dataset.titles)
    titles[900], titles[901], titles[902] = titles[7], titles[7], f"{titles[7]} 2"  # shared; one title begins another
    return SimpleNamespace(
        tokenizer=tokenizer,
        catalogue=pf.Catalogue.from_titles(titles, tokenizer),
        prompt=pf.Prompt(tokenizer, system="Recommend.", instruction="Seen [HISTORY_SEQUENCE]. Next?"),
        dataset=dataset,
    )


@pytest.fixture(scope="session")
def packer(sample):
    return pf.Packer(sample.catalogue, sample.prompt, pf.SessionPatches(3), max_items=12)


@pytest.fixture(scope="session")
def histories(sample):
    """Of 1, 4, 7, ... items."""
    items, offsets = sample.dataset.items, sample.dataset.offsets
    return [items[offsets[user] :][: 1 + 3 * user].tolist() for user in range(5)]


@pytest.fixture(scope="session")
def make_model(sample):
    def build(family="llama", **options):
        name, special = FAMILIES[family]
        config_name = f"{name}TextConfig" if name == "Gemma3" else f"{name}Config"
        # Wide logits: two titles within rounding of each other would come in any order.
        settings = {**TINY, "initializer_range": 0.5, "vocab_size": sample.prompt.num_embeddings, **special, **options}
        torch.manual_seed(0)
        config = getattr(transformers, config_name)(**settings)
        return getattr(transformers, f"{name}ForCausalLM")(config).eval()

    return build


@pytest.fixture(scope="session")
def recommender(make_model, packer):
    return pf.Recommender(make_model(), packer)


@pytest.fixture(scope="session")
def movies(data_dir, tokenizer):
    """ML-1M with the Llama-3 tokenizer: a packer, and the test split's histories."""
    dataset = data.load(data_dir / "ml-1m")
    catalogue = pf.Catalogue.from_titles(dataset.titles, tokenizer)
    prompt = pf.Prompt(tokenizer, system="Recommend movies.", instruction="Watched [HISTORY_SEQUENCE]. Next?")
    flat, offsets = dataset.split("test").histories
    return SimpleNamespace(
        packer=pf.Packer(catalogue, prompt, pf.SessionPatches(5), max_items=100),
        histories=[flat[a:b].tolist() for a, b in pairwise(offsets)],
    )
