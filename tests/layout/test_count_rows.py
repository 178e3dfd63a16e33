# SPDX-License-Identifier: Apache-2.0
"""`Packer.count_rows` against the batches themselves, packed one user at a time."""

import numpy as np
import pytest

from patchrec_fast import data
from patchrec_fast.layout import Catalogue, Dropout, Packer, Prompt, RandomItemPatches, Text, packing
from tests.layout.test_share import POLICIES

DETERMINISTIC = POLICIES[:5]
RANDOM = POLICIES[5:]


def users(rng, items, count):
    """Sequences of few items or many, and places of targets; some users have none."""
    sequences = [rng.choice(items[: rng.choice([4, 9, len(items)])], rng.integers(2, 40)) for _ in range(count)]
    lengths = np.array([len(each) for each in sequences])
    first = rng.integers(1, lengths)
    last = np.minimum(first + rng.integers(-1, 25, count), lengths - 1)
    last[0] = max(first[0], last[0])
    return sequences, first, last


def packed(packer, sequences, first, last, seed=None):
    """(U,) the rows of each user's batch."""
    each = zip(sequences, first.tolist(), last.tolist(), strict=True)
    return [len(packer.pack_targets([s], a, b, seed).position_ids) if b >= a else 0 for s, a, b in each]


def options(rng):
    most = [None, 1, 4, 12][rng.integers(4)]
    return {"max_items": most, "step": int(rng.integers(1, 6)) if most else 1}


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("policy", DETERMINISTIC, ids=repr)
@pytest.mark.parametrize("seed", range(3))
def test_rows_of_users(sample, monkeypatch, policy, share, seed):
    rng = np.random.default_rng(seed)
    for _ in range(8):
        prompt = Prompt(sample.tokenizer, instruction="[HISTORY_SEQUENCE]!", separators=bool(rng.integers(2)))
        packer = Packer(sample.catalogue, prompt, policy, share=share, **options(rng))
        some = users(rng, sample.catalogue.item_ids, rng.integers(1, 7))
        expected = packed(packer, *some)
        for at_once in (1, 200, 1 << 18):
            monkeypatch.setattr(packing, "_PIECES_AT_ONCE", at_once)
            rows = packer.count_rows(*some)
            assert rows.dtype == np.int64
            assert rows.tolist() == expected


@pytest.mark.parametrize("name", ["ml-100k", "ml-1m", "goodreads"])
def test_rows_of_real_users(data_dir, tokenizer, name):
    dataset = data.load(data_dir / name)
    catalogue = Catalogue.from_titles(dataset.titles, tokenizer)
    prompt = Prompt(tokenizer, instruction="A user has seen [HISTORY_SEQUENCE]. What next?")
    chosen = np.random.default_rng(3).choice(len(dataset), 20, replace=False)
    sequences = [dataset.items[dataset.offsets[u] : dataset.offsets[u + 1]] for u in chosen]
    last = np.array([len(each) - 1 for each in sequences])
    first = np.maximum(1, last - 20)
    for policy in DETERMINISTIC:
        packer = Packer(catalogue, prompt, policy, max_items=60, step=15, share=True)
        assert packer.count_rows(sequences, first, last).tolist() == packed(packer, sequences, first, last)


@pytest.mark.parametrize("policy", RANDOM, ids=repr)
def test_apart_is_never_below_a_draw(sample, policy):
    """Sequences that repeat items: with text, prompts may share what is drawn differently for two places."""
    rng = np.random.default_rng(0)
    exceeded = 0
    for seed in range(60):
        given = options(rng)
        text = Packer(sample.catalogue, sample.prompt, Text(), share=True, **given)
        some = users(rng, sample.catalogue.item_ids, 3)
        drawn = packed(Packer(sample.catalogue, sample.prompt, policy, share=True, **given), *some, seed)
        assert (text.count_rows(*some, apart=True) >= drawn).all()
        exceeded += int((text.count_rows(*some) < drawn).sum())
    assert exceeded  # or the test has no case that needs `apart`


def test_apart_changes_nothing_without_repeats(sample):
    rng = np.random.default_rng(1)
    sequences = [rng.permutation(sample.catalogue.item_ids)[:30] for _ in range(5)]
    for given in ({"max_items": None}, {"max_items": 8}, {"max_items": 8, "step": 4}):
        packer = Packer(sample.catalogue, sample.prompt, Text(), share=True, **given)
        apart, alike = (packer.count_rows(sequences, 3, 29, apart) for apart in (True, False))
        assert apart.tolist() == alike.tolist()


@pytest.mark.parametrize("policy", [RandomItemPatches(0.5), Dropout(0.5)], ids=repr)
def test_a_random_policy_is_an_error(sample, policy):
    with pytest.raises(ValueError, match=r"policy: expected a deterministic one, .* got (Random|Dropout)"):
        Packer(sample.catalogue, sample.prompt, policy).count_rows([[1, 2, 3]], 1, 2)


def test_errors_of_pack_targets(sample):
    packer = Packer(sample.catalogue, sample.prompt, Text())
    with pytest.raises(ValueError, match="last: expected a place in the user's sequence, got 3"):
        packer.count_rows([[1, 2, 3]], 1, 3)
    with pytest.raises(ValueError, match="item_ids: 99999 is not in the catalogue"):
        packer.count_rows([[1, 99_999, 3]], 1, 2)
