# SPDX-License-Identifier: Apache-2.0
"""Titles that are learnt where they stand in a text history, against prompts written token by token."""

import numpy as np
import pytest
import torch

import patchrec_fast as pf
from patchrec_fast import data
from patchrec_fast.layout.titles import pack_titles

SEEDS = range(12)


def made(seed, **options):
    """A random catalogue, whose titles often begin alike, and a packer."""
    rng = np.random.default_rng(seed)
    words = ["the", "night", "of", "rain"]
    titles = {item: " ".join(rng.choice(words, rng.integers(1, 5))) for item in range(1, 9)}
    tokenizer = data.sample_tokenizer(titles.values())
    prompt = pf.Prompt(tokenizer, instruction="Seen [HISTORY_SEQUENCE]. Next?", separators=bool(seed % 2))
    return rng, pf.Packer(pf.Catalogue.from_titles(titles, tokenizer), prompt, pf.SessionPatches(2), **options)


def tokens_of(packer, item):
    catalogue = packer.catalogue
    place = int(catalogue.index([item])[0])
    return catalogue.token_ids[catalogue.offsets[place] : catalogue.offsets[place + 1]].tolist()


def expected(packer, items, targets):
    """A prompt's tokens, and (place, token) of what is learnt of its last `targets` titles."""
    prompt = packer.prompt
    tokens, learnt = prompt.prefix.tolist(), []
    for nth, item in enumerate(items):
        title = tokens_of(packer, item)
        if nth >= len(items) - targets:
            learnt += range(len(tokens), len(tokens) + len(title) + 1)
        tokens += [*title, prompt.separator] if nth < len(items) - 1 else title
    tokens += prompt.suffix.tolist()
    return tokens, [(place, tokens[place]) for place in learnt]


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_prompts_and_targets(seed, share):
    rng, packer = made(seed, max_items=6, step=int(1 + seed % 3), share=share)
    sequences = [rng.integers(1, 9, rng.integers(2, 16)) for _ in range(5)]
    sequences[1] = sequences[0]  # share all their rows
    last = np.array([rng.integers(1, len(each)) for each in sequences])
    first = np.array([rng.integers(max(1, end - 5), end + 1) for end in last])
    first[3] = last[3] + 1  # no targets
    batch = pack_titles(packer, sequences, first, last)

    rows = batch.prompts(torch.arange(len(batch.position_ids)))
    wanted, learnt = [], []
    for user in (0, 1, 2, 4):
        end = int(last[user])
        kept = end if end < 6 else end - (end - 6) // packer.step * packer.step
        tokens, places = expected(packer, sequences[user][end - kept : end + 1], int(end - first[user] + 1))
        wanted.append(tokens)
        own = rows[len(wanted) - 1].tolist()
        learnt += [(own[place - 1], own[place], token) for place, token in places]
    assert [batch.ids[each].tolist() for each in rows] == wanted
    assert batch.supervised_rows.tolist() == [before for before, _, _ in learnt]
    assert batch.targets.tolist() == [token for _, _, token in learnt]
    labels = torch.full((len(batch.position_ids),), -100)
    labels[[row for _, row, _ in learnt]] = torch.tensor([token for _, _, token in learnt])
    assert batch.labels.tolist() == labels.tolist()
    assert share == (batch.parent is not None)


def test_shared_and_not_have_one_loss():
    """Two users with one sequence share every row that is learnt, and it counts for both."""
    from transformers import LlamaConfig, LlamaForCausalLM

    rng, packer = made(0)
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=packer.prompt.num_embeddings, **size))
    pf.attach(model)
    sequences = [rng.integers(1, 9, 7)] * 2 + [rng.integers(1, 9, 9)]
    found = []
    for share in (False, True):
        packer.share = share
        model.zero_grad()
        loss = model(**pack_titles(packer, sequences, [2, 4, 3], [6, 6, 8]).model_inputs()).loss
        loss.backward()
        found.append((loss.detach(), model.lm_head.weight.grad.clone()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-7)


def test_more_targets_than_items():
    _, packer = made(0, max_items=3)
    with pytest.raises(ValueError, match=r"first, last: got 4 targets, the last with a history of 3 items"):
        pack_titles(packer, [[1, 2, 3, 4, 5]], 1, 4)
    with pytest.raises(ValueError, match="first: expected at least 1"):
        pack_titles(packer, [[1, 2, 3, 4, 5]], 0, 2)
