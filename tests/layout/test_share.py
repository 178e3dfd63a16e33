# SPDX-License-Identifier: Apache-2.0
"""Prompts that share rows against the same prompts packed one by one, row for row."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from patchrec_fast import data
from patchrec_fast.layout import (
    Catalogue,
    Dropout,
    ItemPatches,
    Packer,
    Prompt,
    RandomItemPatches,
    SessionPatches,
    Text,
)
from tests.layout.test_tree import distinct

POLICIES = [
    Text(),
    ItemPatches(2),
    ItemPatches(2, step=3),
    SessionPatches(2),
    SessionPatches(2, anchor="oldest"),
    RandomItemPatches(0.4),
    Dropout(0.4),
]


def rows_of(batch):
    """Each row's items, an item its tokens: something hashable."""
    ids, (token_at, item_at) = batch.ids.tolist(), (level.tolist() for level in batch.offsets)
    items = [tuple(ids[a:b]) for a, b in pairwise(token_at)]
    return [tuple(items[a:b]) for a, b in pairwise(item_at)]


def check(shared, alone):
    """`alone` is the batch of the same prompts without `share`."""
    number = torch.arange(len(shared.position_ids))
    rows, plain = rows_of(shared), rows_of(alone)
    ends = alone.cu_seqlens.tolist()
    prompts = shared.prompts(number)
    assert len(prompts) == len(shared) == len(alone)
    successors = []
    for user, places in enumerate(prompts):
        own = slice(ends[user], ends[user + 1])
        assert [rows[at] for at in places.tolist()] == plain[own]
        assert torch.equal(shared.position_ids[places], alone.position_ids[own])
        if alone.labels is not None:
            learnt = (alone.labels[own][1:] != -100).nonzero().squeeze(1)
            successors.append((places[learnt], alone.labels[own][1:][learnt]))
    if alone.labels is None:
        assert shared.targets is None
        return
    assert torch.equal(shared.supervised_rows, torch.cat([before for before, _ in successors]))
    assert torch.equal(shared.targets, torch.cat([label for _, label in successors]))
    assert torch.equal(alone.targets, shared.targets)
    assert torch.equal(alone.labels[1:][alone.supervised_rows], alone.targets)  # supervised rows are those before
    inputs = shared.model_inputs()
    assert inputs["longest"] == int(shared.position_ids.max()) + 1
    assert inputs["levels"] == shared.segments.ranges()[1].shape[1] == int(shared.segments.ranges()[0].max()) + 1
    assert torch.equal(inputs["labels"][0][inputs["labels"][0] != -100].sort().values, shared.targets.sort().values)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("seed", range(3))
def test_targets_of_users(sample, policy, seed):
    rng = np.random.default_rng(seed)
    for _ in range(6):
        prompt = Prompt(sample.tokenizer, instruction="[HISTORY_SEQUENCE]!", separators=bool(rng.integers(2)))
        most = [None, 3, 12][rng.integers(3)]
        options = {"max_items": most, "step": int(rng.integers(1, 6)) if most else 1}
        sequences = [rng.choice(sample.catalogue.item_ids[:6], rng.integers(2, 25)) for _ in range(rng.integers(1, 4))]
        lengths = np.array([len(each) for each in sequences])
        first = rng.integers(1, lengths)
        last = np.minimum(first + rng.integers(0, 12, len(first)), lengths - 1)
        shared, alone = (
            Packer(sample.catalogue, prompt, policy, share=share, **options).pack_targets(sequences, first, last, seed)
            for share in (True, False)
        )
        if len(shared) > 1:
            assert shared.parent is not None
            check(shared, alone)
        if isinstance(policy, RandomItemPatches | Dropout):
            continue
        histories = [s[:t] for s, a, b in zip(sequences, first, last, strict=True) for t in range(a, b + 1)]
        targets = [s[t] for s, a, b in zip(sequences, first, last, strict=True) for t in range(a, b + 1)]
        one_by_one = Packer(sample.catalogue, prompt, policy, **options).pack(histories, targets)
        assert rows_of(one_by_one) == rows_of(alone)
        again = Packer(sample.catalogue, prompt, policy, share=True, **options)
        if len(shared) > 1:
            check(again.pack(histories, targets), alone)
            check(again.pack(histories), Packer(sample.catalogue, prompt, policy, **options).pack(histories))


@pytest.mark.parametrize("name", ["ml-100k", "ml-1m", "goodreads"])
def test_real_histories(data_dir, tokenizer, name):
    """Text: each row is a unit of its own, so a tree of dicts over pieces says how many rows there are."""
    dataset = data.load(data_dir / name)
    prompt = Prompt(tokenizer, instruction="A user has seen [HISTORY_SEQUENCE]. What next?")
    catalogue = Catalogue.from_titles(dataset.titles, tokenizer)
    users = np.random.default_rng(2).choice(len(dataset), 3, replace=False)
    sequences = [dataset.items[dataset.offsets[u] : dataset.offsets[u + 1]][:40] for u in users]
    last = np.array([len(each) - 1 for each in sequences])
    first = np.maximum(1, last - 12)
    for policy in POLICIES[:5]:
        packers = [Packer(catalogue, prompt, policy, max_items=20, step=5, share=share) for share in (True, False)]
        shared, alone = (packer.pack_targets(sequences, first, last) for packer in packers)
        check(shared, alone)
    packers = [Packer(catalogue, prompt, Text(), share=share) for share in (True, False)]
    shared, alone = (packer.pack_targets(sequences, first, last) for packer in packers)
    sizes, lists = {}, []
    title = dict(zip(catalogue.item_ids.tolist(), np.diff(catalogue.offsets).tolist(), strict=True))
    for sequence, a, b in zip(sequences, first, last, strict=True):
        for t in range(a, b + 1):
            items = sequence[: t + 1].tolist()
            units = [("prefix",), *((i, n > 0) for n, i in enumerate(items[:-1])), ("suffix",), ("answer", items[-1])]
            sizes |= {(i, n > 0): title[i] + (n > 0) for n, i in enumerate(items[:-1])}
            sizes[units[-1]] = title[items[-1]] + 1
            lists.append(units)
    sizes |= {("prefix",): len(prompt.prefix), ("suffix",): len(prompt.suffix)}
    assert len(shared.position_ids) == distinct(lists, sizes.get)
    assert len(alone.position_ids) > 4 * len(shared.position_ids)


def test_a_patch_of_one_token_is_its_text(sample):
    """Item patches or text: one row of the same mean, which prompts share."""
    catalogue = Catalogue(np.array([5, 6, 7], np.int32), np.arange(4, dtype=np.int32), np.arange(3), list("abc"))
    sequence = [0, 1, 2, 0, 1, 2]
    rows = {
        len(Packer(catalogue, sample.prompt, policy, share=True).pack_targets([sequence], 1, 5).position_ids)
        for policy in (Text(), ItemPatches(1), ItemPatches(0))
    }
    assert len(rows) == 1


def test_one_prompt_is_a_root(sample):
    shared, alone = (
        Packer(sample.catalogue, sample.prompt, Text(), share=share).pack([[1, 2]], [3]) for share in (True, False)
    )
    assert shared.model_inputs().keys() == alone.model_inputs().keys()
    assert shared.segments.parent.tolist() == [-1]
    assert torch.equal(shared.cu_seqlens, alone.cu_seqlens)


@pytest.mark.parametrize("name", ["cu_seqlens", "max_seqlen", "user_offsets"])
def test_a_tree_is_not_read_as_whole_prompts(sample, name):
    batch = Packer(sample.catalogue, sample.prompt, Text(), share=True).pack([[1, 2], [1, 2, 3]], [3, 4]).to("cpu")
    with pytest.raises(ValueError, match=rf"{name}: the batch's 2 prompts share rows"):
        getattr(batch, name)
    assert "2 prompts in 3 segments" in repr(batch)


@pytest.mark.parametrize(
    ("first", "last", "error", "message"),
    [
        (0, 1, ValueError, "first: expected at least 1, .* got 0 for user 0 of 3 items"),
        (1, [2, 9], ValueError, "last: expected a place in the user's sequence, got 9 for user 1 of 2 items"),
        (1, -1, ValueError, "no user has a target"),
        (1.0, 1, TypeError, "first: expected integers, got float64"),
        (1, [1, 1, 1], ValueError, r"last: expected one place or 2, one a user, got shape \(3,\)"),
    ],
)
def test_places_errors(sample, first, last, error, message):
    with pytest.raises(error, match=message):
        Packer(sample.catalogue, sample.prompt, Text()).pack_targets([[1, 2, 3], [4, 5]], first, last)


def test_options_errors(sample):
    for options, message in (
        ({"step": 2}, "step: got 2 without max_items"),
        ({"step": 0, "max_items": 3}, "step: expected at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Packer(sample.catalogue, sample.prompt, Text(), **options)
