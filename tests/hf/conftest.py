# SPDX-License-Identifier: Apache-2.0
"""Tiny random models of each family, and packed batches of the generated sample."""

from types import SimpleNamespace

import pytest
import torch

import patchrec_fast as pf
from patchrec_fast import data

transformers = pytest.importorskip("transformers")

TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
    "initializer_range": 0.25,  # attention far from uniform
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
WINDOW = 7  # every prompt is longer
LAYERS = ["sliding_attention", "full_attention"]
FAMILIES = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": LAYERS}),
    "qwen3": ("Qwen3", {}),
    "mistral": ("Mistral", {"sliding_window": WINDOW}),
    "gemma": ("Gemma", {}),
    # transformers 5.17 would choose sdpa, which does not cap.
    "gemma2": (
        "Gemma2",
        {
            "sliding_window": WINDOW,
            "layer_types": LAYERS,
            "query_pre_attn_scalar": 8,
            "attn_implementation": "eager",
        },
    ),
    "gemma3": ("Gemma3", {"sliding_window": WINDOW, "layer_types": LAYERS, "query_pre_attn_scalar": 8}),
}
WIDE_FAMILIES = {  # for what the model's class decides alone
    **FAMILIES,
    "granite": ("Granite", {"logits_scaling": 3.0}),
    "olmo2": ("Olmo2", {}),
    "phi3": ("Phi3", {}),
    "smollm3": ("SmolLM3", {}),
}


@pytest.fixture(scope="session")
def sample():
    dataset = data.generate(users=40, items=300)
    tokenizer = data.sample_tokenizer(dataset.titles.values())
    return SimpleNamespace(
        dataset=dataset,
        catalogue=pf.Catalogue.from_titles(dataset.titles, tokenizer),
        prompt=pf.Prompt(tokenizer, system="Recommend.", instruction="Seen [HISTORY_SEQUENCE]. Next?"),
    )


@pytest.fixture(scope="session")
def pack(sample):
    """pack(policy, users, targets=True): histories of 1, 2, ... items, so that no two are equally long."""

    def build(policy, users=5, targets=True, first=1):
        offsets = sample.dataset.offsets
        histories, answers = [], []
        for user in range(users):
            items = sample.dataset.items[offsets[user] : offsets[user + 1]].tolist()
            length = min(3 * user + first, len(items) - 1)
            histories.append(items[:length])
            answers.append(items[length])
        packer = pf.Packer(sample.catalogue, sample.prompt, policy)
        return packer.pack(histories, targets=answers if targets else None, seed=0)

    return build


@pytest.fixture(scope="session")
def make_model(sample):
    def build(family, **options):
        name, special = WIDE_FAMILIES[family]
        config_name = f"{name}TextConfig" if name == "Gemma3" else f"{name}Config"
        settings = {**TINY, "vocab_size": sample.prompt.num_embeddings, **special, **options}
        torch.manual_seed(0)
        config = getattr(transformers, config_name)(**settings)
        return getattr(transformers, f"{name}ForCausalLM")(config).eval()

    return build
