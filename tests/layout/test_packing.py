# SPDX-License-Identifier: Apache-2.0
"""Packed batches, row for row, against the loops of brute.py."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchrec_fast import data
from patchrec_fast.layout import (
    Assignment,
    Catalogue,
    Dropout,
    ItemPatches,
    Packer,
    Prompt,
    RandomItemPatches,
    SessionPatches,
    Text,
    packing,
)
from tests.layout import brute

SETS = {"ml-1m": ("movie", "watched", 5), "goodreads": ("book", "read", 5)}
SETS["ml-100k"] = ("movie", "watched", 20)
POLICIES = ["Text", "ItemPatches", "SessionPatches", "RandomItemPatches", "Dropout"]
SEED = 5


def cases(name, size, histories):
    """A policy, and the units that the loops make of each history."""
    if name == "Text":
        return Text(), [brute.text(h) for h in histories]
    if name == "ItemPatches":
        return ItemPatches(size), [brute.item_patches(h, size) for h in histories]
    if name == "SessionPatches":
        return SessionPatches(size), [brute.session_patches(h, size) for h in histories]
    draws = np.random.default_rng(SEED).random(sum(map(len, histories))) < 0.4
    ends = np.cumsum([len(h) for h in histories])[:-1]
    chosen = [part.tolist() for part in np.split(draws, ends)]
    policy, build = {
        "RandomItemPatches": (RandomItemPatches(0.4), brute.random_item_patches),
        "Dropout": (Dropout(0.4), brute.dropout),
    }[name]
    return policy, [build(h, c) for h, c in zip(histories, chosen, strict=True)]


def frame(prompt, titles, tokenizer):
    return brute.Frame(
        titles={i: tokenizer.encode(t, add_special_tokens=False) for i, t in titles.items()},
        prefix=prompt.prefix.tolist(),
        suffix=prompt.suffix.tolist(),
        separator=prompt.separator,
        end_of_turn=prompt.end_of_turn,
        separators=prompt.separators,
    )


def check(batch, units, targets, around):
    """Every tensor of the batch."""
    built = [
        brute.prompt(u, around, t)
        for u, t in zip(units, targets if targets is not None else [None] * len(units), strict=True)
    ]
    assert len(batch) == len(units)
    for user, (got, (rows, _)) in enumerate(zip(brute.rows_of(batch), built, strict=True)):
        assert got == rows, f"user {user}"
    lengths = [len(rows) for rows, _ in built]
    assert batch.max_seqlen == max(lengths)
    assert batch.position_ids.tolist() == [p for n in lengths for p in range(n)]
    if targets is None:
        assert batch.labels is None
    else:
        assert batch.labels.tolist() == [label for _, labels in built for label in labels]
    dtypes = [batch.ids, *batch.offsets, batch.cu_seqlens, batch.position_ids]
    assert [t.dtype for t in dtypes] == [torch.int32] * 4 + [torch.int64]


def of_lengths(items, lengths):
    """Histories of these lengths out of one long sequence of items, each from another place."""
    flat = np.resize(items, sum(lengths) + 1)
    return [part.tolist() for part in np.split(flat, np.cumsum(lengths))[:-1]]


@pytest.fixture(scope="module")
def real(data_dir, tokenizer):
    """set name -> dataset, catalogue, prompt, brute frame; made once each."""
    made = {}

    def get(name):
        if name not in made:
            thing, verb, _ = SETS[name]
            dataset = data.load(data_dir / name)
            prompt = Prompt(
                tokenizer,
                system=f"You are a helpful assistant in {thing} recommendations.",
                instruction=f"A user has {verb} [HISTORY_SEQUENCE]. Please recommend one {thing}.",
            )
            catalogue = Catalogue.from_titles(dataset.titles, tokenizer)
            made[name] = dataset, catalogue, prompt, frame(prompt, dataset.titles, tokenizer)
        return made[name]

    return get


@pytest.mark.parametrize("policy_name", POLICIES)
@pytest.mark.parametrize("name", SETS)
def test_real_histories(real, name, policy_name):
    dataset, catalogue, prompt, around = real(name)
    g = SETS[name][2]
    lengths = np.diff(dataset.offsets)
    longest = dataset.items[dataset.offsets[lengths.argmax()] :][: lengths.max()].tolist()
    histories = [longest[:n] for n in (1, g, g + 1, 2 * g - 1, 2 * g, 2 * g + 1, 3 * g)] + [longest]
    if name == "ml-1m":
        assert len(longest) == 1435
    (flat, offsets), targets = dataset.split("test", max_items=None)
    picked = np.random.default_rng(1).choice(len(targets), 60, replace=False)
    histories += [flat[offsets[i] : offsets[i + 1]].tolist() for i in picked]
    targets = [*longest[: len(histories) - len(picked)], *targets[picked].tolist()]

    policy, units = cases(policy_name, g, histories)
    batch = Packer(catalogue, prompt, policy).pack(histories, targets, seed=SEED)
    check(batch, units, targets, around)

    histories = [h[-100:] for h in histories]
    policy, units = cases(policy_name, g, histories)
    batch = Packer(catalogue, prompt, policy, max_items=100).pack(histories, seed=SEED)
    check(batch, units, None, around)


@pytest.mark.parametrize("policy_name", POLICIES)
@pytest.mark.parametrize("separators", [True, False])
def test_sample_histories(sample, policy_name, separators):
    titles, prompt = sample.dataset.titles, sample.prompt
    if not separators:
        prompt = Prompt(sample.tokenizer, instruction="[HISTORY_SEQUENCE]", separators=False)
    (flat, offsets), targets = sample.dataset.split("test")
    histories = [h.tolist() for h in np.split(flat, offsets[1:-1])]
    policy, units = cases(policy_name, 7, histories)
    packer = Packer(sample.catalogue, prompt, policy)
    batch = packer.pack((flat, offsets), targets, seed=SEED)
    check(batch, units, targets.tolist(), frame(prompt, titles, sample.tokenizer))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    size=st.integers(1, 8),
    policy_name=st.sampled_from(POLICIES),
    max_items=st.none() | st.integers(1, 20),
    separators=st.booleans(),
    targets=st.booleans(),
)
def test_any_lengths(sample, lengths, size, policy_name, max_items, separators, targets):
    prompt = Prompt(sample.tokenizer, instruction="[HISTORY_SEQUENCE]", separators=separators)
    around = frame(prompt, sample.dataset.titles, sample.tokenizer)
    histories = of_lengths(sample.dataset.items, lengths)
    wanted = sample.dataset.items[: len(lengths)].tolist() if targets else None
    policy, units = cases(policy_name, size, [h[-(max_items or 30) :] for h in histories])
    packer = Packer(sample.catalogue, prompt, policy, max_items)
    batch = packer.pack(histories, wanted, seed=SEED)
    check(batch, units, wanted, around)


def test_forms_of_histories(sample):
    histories = of_lengths(sample.dataset.items, [3, 1, 12])
    flat, offsets = np.concatenate(histories), np.array([0, 3, 4, 16])
    packer = Packer(sample.catalogue, sample.prompt, SessionPatches(2), max_items=9)
    expected = brute.rows_of(packer.pack(histories))
    spread = np.repeat(flat.astype(np.int16), 2)[::2]
    for form in (
        [np.array(h, np.int32) for h in histories],
        [torch.tensor(h) for h in histories],
        [tuple(h) for h in histories],
        (flat, offsets),
        (flat.astype(np.int32), offsets.astype(np.uint32)),
        (spread, offsets[::1]),
        (torch.from_numpy(flat), torch.from_numpy(offsets)),
    ):
        assert brute.rows_of(packer.pack(form)) == expected


def test_a_policy_of_ones_own(sample):
    """Sessions cut where the user's items turn odd; dropping an item joins its neighbours."""

    class Mine:
        def assign(self, lengths, rng):
            grain = np.array([2, 2, 2, 3, 2, 0, 2, 1, 2, 2, 2])
            session = np.array([4, 4, 5, 9, 5, 5, 5, 5, 5, 5, 5])
            return Assignment(grain, session)

    h = sample.dataset.items[:11].tolist()
    units = [
        [
            brute.Unit(False, h[:2]),
            brute.Unit(False, [h[2], h[4]]),
            brute.Unit(True, [h[5]]),
            brute.Unit(False, [h[6]]),
            brute.Unit(False, [h[7]]),
            brute.Unit(False, [h[8]]),
        ],
        [brute.Unit(False, h[9:])],  # the same number, but another user
    ]
    batch = Packer(sample.catalogue, sample.prompt, Mine()).pack([h[:9], h[9:]])
    around = frame(sample.prompt, sample.dataset.titles, sample.tokenizer)
    check(batch, units, None, around)


def test_seeds(sample):
    packer = Packer(sample.catalogue, sample.prompt, RandomItemPatches(0.5))
    histories = of_lengths(sample.dataset.items, [40, 40])
    once, again, other = (brute.rows_of(packer.pack(histories, seed=s)) for s in (1, 1, 2))
    assert once == again
    assert once != other
    rng = np.random.default_rng(1)
    assert brute.rows_of(packer.pack(histories, seed=rng)) == once
    assert brute.rows_of(packer.pack(histories, seed=rng)) != once


@pytest.mark.parametrize(("p", "same"), [(0.0, Text()), (1.0, ItemPatches(0))])
def test_random_extremes(sample, p, same):
    histories = of_lengths(sample.dataset.items, [1, 9, 30])
    prompts = [
        brute.rows_of(Packer(sample.catalogue, sample.prompt, policy).pack(histories))
        for policy in (RandomItemPatches(p), same)
    ]
    assert prompts[0] == prompts[1]


def test_everything_dropped(sample):
    batch = Packer(sample.catalogue, sample.prompt, Dropout(1.0)).pack([[1, 2], [3]], [4, 5])
    around = frame(sample.prompt, sample.dataset.titles, sample.tokenizer)
    check(batch, [[], []], [4, 5], around)


def test_more_tokens_than_int32_counts(sample, monkeypatch):
    """The limit is moved to the batch, so that a failure does not ask for 20 GB."""
    assert torch.iinfo(torch.int32).max == packing._INT32_MAX
    packer = Packer(sample.catalogue, sample.prompt, ItemPatches(0))
    histories = [[1, 2, 3], [4]]
    tokens = len(packer.pack(histories).ids)
    monkeypatch.setattr(packing, "_INT32_MAX", tokens)
    assert len(packer.pack(histories).ids) == tokens
    monkeypatch.setattr(packing, "_INT32_MAX", tokens - 1)
    with pytest.raises(ValueError, match=rf"2 users make {tokens} tokens, more than 2\*\*31 - 1"):
        packer.pack(histories)


def pair(*parts):
    return tuple(np.array(part) for part in parts)


class TestErrors:
    @pytest.fixture
    def packer(self, sample):
        return Packer(sample.catalogue, sample.prompt, ItemPatches(2))

    @pytest.mark.parametrize(
        ("histories", "error", "message"),
        [
            ([], ValueError, "histories: got no users"),
            ([[1], [], [2]], ValueError, "the user at place 1 has no items"),
            ([[1], [2, 99_999]], ValueError, "item_ids: 99999 is not in the catalogue"),
            ([[1], [-1]], ValueError, "histories: expected no negative number, got -1"),
            ([[1.5]], TypeError, "histories: expected integers, got float64"),
            ([[True, 2]], TypeError, r"histories: expected integers, got True \(bool\)"),
            ([[np.True_, 2]], TypeError, "histories: expected integers, got .*True"),
            ([["1"]], TypeError, "histories: expected a list with one sequence|expected integers"),
            (["12"], TypeError, "histories: expected a list with one sequence of item ids"),
            ([1, 2], TypeError, "histories: expected a list with one sequence of item ids"),
            ([[[1, 2]], [3]], TypeError, "histories: expected a list with one sequence"),
            (7, TypeError, "histories: expected a list with one sequence"),
            (([1, 2],), TypeError, r"a tuple is two arrays \(flat, offsets\), got \(list\)"),
            (([1, 2], [0, 2]), TypeError, r"\(flat, offsets\), got \(list, list\)"),
            (pair([1, 2], [0, 1]), ValueError, "offsets.*expected to rise from 0 to 2"),
            (pair([1, 2], [1, 2]), ValueError, "offsets.*expected to rise from 0 to 2"),
            (pair([1, 2], [0, 2, 1, 2]), ValueError, "offsets.*expected to rise from 0 to 2"),
            (pair([1, 2], [0, 3]), ValueError, "offsets.*expected to rise from 0 to 2"),
            (pair([1, 2], []), ValueError, "offsets.*expected to rise from 0 to 2"),
            (pair([], [0]), ValueError, "histories: got no users"),
            (pair([1, 2], [0, 1, 1, 2]), ValueError, "the user at place 1 has no items"),
            (pair([1.0], [0, 1]), TypeError, r"histories \(flat\): expected integers, got float64"),
            (pair([[1]], [0, 1]), ValueError, r"histories \(flat\): expected one dimension"),
        ],
    )
    def test_histories(self, packer, histories, error, message):
        with pytest.raises(error, match=message):
            packer.pack(histories)

    @pytest.mark.parametrize(
        ("targets", "error", "message"),
        [
            ([1], ValueError, "targets: got 1 for 2 histories"),
            ([1, 2, 3], ValueError, "targets: got 3 for 2 histories"),
            ([1, 99_999], ValueError, "99999 is not in the catalogue"),
            ([1.0, 2.0], TypeError, "targets: expected integers, got float64"),
            ([[1, 2]], ValueError, "targets: expected one dimension"),
        ],
    )
    def test_targets(self, packer, targets, error, message):
        with pytest.raises(error, match=message):
            packer.pack([[1], [2]], targets)

    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            ({"policy": Text}, TypeError, "policy: expected an object with assign"),
            ({"policy": None}, TypeError, "policy: expected an object with assign"),
            ({"max_items": 0}, ValueError, "max_items: expected at least 1, got 0"),
            ({"max_items": 2.0}, TypeError, "max_items: expected an int"),
        ],
    )
    def test_settings(self, sample, given, error, message):
        with pytest.raises(error, match=message):
            Packer(sample.catalogue, sample.prompt, **{"policy": Text(), **given})

    def test_another_tokenizers_catalogue(self, sample):
        foreign = Catalogue(np.array([10**6]), np.array([0, 1]), np.array([1]), ["a"])
        with pytest.raises(ValueError, match="catalogue: token id 1000000 is beyond"):
            Packer(foreign, sample.prompt, Text())

    @pytest.mark.parametrize(
        ("answer", "error", "message"),
        [
            (([0], [0]), ValueError, r"gave grain of shape \(1,\), expected \(2,\)"),
            (([0, 0], [0]), ValueError, r"gave session of shape \(1,\), expected \(2,\)"),
            (([0, 4], [0, 0]), ValueError, r"gave a grain outside 0\.\.3: 0 to 4"),
            (([0, -1], [0, 0]), ValueError, r"gave a grain outside 0\.\.3: -1 to 0"),
            (([0.0, 1.0], [0, 0]), TypeError, "gave grain of dtype float64"),
            (([0, 1], [0.0, 0.0]), TypeError, "gave session of dtype float64"),
        ],
    )
    def test_policies(self, sample, answer, error, message):
        class Bad:
            def assign(self, lengths, rng):
                return Assignment(*answer)

        with pytest.raises(error, match=message):
            Packer(sample.catalogue, sample.prompt, Bad()).pack([[1, 2]])

    def test_items_older_than_the_window_are_not_looked_at(self, sample):
        packer = Packer(sample.catalogue, sample.prompt, Text(), max_items=2)
        assert brute.rows_of(packer.pack([[99_999, 1, 2]])) == brute.rows_of(packer.pack([[1, 2]]))
