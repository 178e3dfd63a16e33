# SPDX-License-Identifier: Apache-2.0
"""The generated sample as training data, and a tiny model over it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import patchrec_fast as pf
from patchrec_fast import data
from tests.train.runs import RECIPE

transformers = pytest.importorskip("transformers")


def make_sample(users=40):
    """A dataset, its tokenizer, a packer that reads 8 items of a history, and 120 training samples of all lengths."""
    dataset = data.generate(users=users, items=300)
    tokenizer = data.sample_tokenizer(dataset.titles.values())
    prompt = pf.Prompt(tokenizer, system="Recommend.", instruction="Seen [HISTORY_SEQUENCE]. Next?")
    catalogue = pf.Catalogue.from_titles(dataset.titles, tokenizer)
    return SimpleNamespace(
        dataset=dataset,
        tokenizer=tokenizer,
        prompt=prompt,
        packer=pf.Packer(catalogue, prompt, pf.Text(), max_items=8),
        train=take(dataset.split("train", min_position=1), 120),
        val=take(dataset.split("val"), 30),
    )


def take(samples, count):
    """`count` samples, evenly spread."""
    (flat, offsets), targets = samples
    places = np.linspace(0, len(targets) - 1, count).astype(int)
    histories = [flat[offsets[place] : offsets[place + 1]] for place in places]
    lengths = [len(history) for history in histories]
    return data.Samples((np.concatenate(histories), np.cumsum([0, *lengths])), targets[places])


def make_tiny(prompt, **options):
    """A random Llama, attached."""
    settings = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": prompt.num_embeddings,
        "initializer_range": 0.25,  # attention far from uniform
        **options,
    }
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**settings)
    model = transformers.LlamaForCausalLM(config)
    pf.attach(model)
    return model


@pytest.fixture(scope="session")
def sample():
    return make_sample()


@pytest.fixture
def tiny(sample):
    """tiny(**options): a fresh attached model, always with the same weights."""
    return lambda **options: make_tiny(sample.prompt, **options)


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A dataset folder, and a folder of its tokenizer."""
    folder = tmp_path_factory.mktemp("small")
    dataset = data.generate(users=30, items=100)
    data.save(dataset, folder / "data")
    data.sample_tokenizer(dataset.titles.values()).save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture
def run(small, tmp_path):
    from patchrec_fast.train.run import train  # imports accelerate

    def start(name, stage="pft-s", recipe=RECIPE, model="tiny", resume=False, **changes):
        tokenizer = small / "tokenizer" if model == "tiny" else None
        recipe = recipe.override(changes)
        out = tmp_path / name
        return train(recipe, stage, model=model, data=small / "data", out=out, tokenizer=tokenizer, resume=resume)

    return start
