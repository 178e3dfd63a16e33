# SPDX-License-Identifier: Apache-2.0
"""Catalogue: tokens of every title, and ids to positions."""

import pickle

import numpy as np
import pytest
import torch

from patchrec_fast.layout import Catalogue

TITLES = {30: "Jaws", 10: "Jaws 2", 20: "  leading space", 7: "Amélie — 愛 🎬"}


@pytest.fixture
def catalogue(sample):
    return Catalogue.from_titles(TITLES, sample.tokenizer)


def test_titles_are_tokenised_alone(sample, catalogue):
    assert len(catalogue) == 4
    assert catalogue.titles == list(TITLES.values())
    assert catalogue.item_ids.tolist() == list(TITLES)
    for place, title in enumerate(TITLES.values()):
        tokens = catalogue.token_ids[catalogue.offsets[place] : catalogue.offsets[place + 1]]
        assert tokens.tolist() == sample.tokenizer.encode(title, add_special_tokens=False)
    assert catalogue.mean_tokens == catalogue.offsets[-1] / 4


def test_dtypes_and_zero_copy(catalogue):
    assert catalogue.token_ids.dtype == catalogue.offsets.dtype == np.int32
    assert catalogue.item_ids.dtype == np.int64
    tensor = torch.from_numpy(catalogue.token_ids)
    assert tensor.data_ptr() == catalogue.token_ids.ctypes.data


def test_special_tokens_in_a_title_are_text(sample):
    title = "The End<|eot_id|>"
    tokens = Catalogue.from_titles({1: title}, sample.tokenizer).token_ids
    assert sample.tokenizer.eos_token_id not in tokens.tolist()
    assert sample.tokenizer.decode(tokens) == title
    # the tokenizer is left as it was
    assert sample.tokenizer.encode("<|eot_id|>")[1:] == [sample.tokenizer.eos_token_id]


@pytest.mark.parametrize(
    "ids",
    [
        [5, 3, 4, 9],  # dense
        [10**12, 5, 10**6],  # far apart: sorted search
        [2**63 - 1, 0],
    ],
)
def test_index(sample, ids):
    catalogue = Catalogue.from_titles({i: f"title {i}" for i in ids}, sample.tokenizer)
    asked = [*ids, *reversed(ids), ids[0]]
    assert catalogue.index(asked).tolist() == [ids.index(i) for i in asked]
    assert catalogue.index([]).tolist() == []
    for unknown in {min(ids) + 1, max(ids) - 2, 2**63 - 2} - {*ids}:
        with pytest.raises(ValueError, match=rf"item_ids: {unknown} is not in the catalogue"):
            catalogue.index([ids[0], unknown])


def test_index_of_random_ids(sample):
    rng = np.random.default_rng(0)
    ids = rng.choice(5000, 700, replace=False)
    catalogue = Catalogue.from_titles([(int(i), f"t {i}") for i in ids], sample.tokenizer)
    asked = rng.choice(ids, 3000).astype(np.int32)
    assert (catalogue.item_ids[catalogue.index(asked)] == asked).all()


def test_index_rejects_other_types(catalogue):
    with pytest.raises(TypeError, match="item_ids: expected integers, got float64"):
        catalogue.index([30.0])
    with pytest.raises(ValueError, match=r"item_ids: expected one dimension, got shape \(1, 2\)"):
        catalogue.index([[30, 10]])


def test_pickle(catalogue):
    catalogue.index([30])
    twin = pickle.loads(pickle.dumps(catalogue))
    assert twin.index([7, 30]).tolist() == [3, 0]
    assert twin.titles == catalogue.titles


@pytest.mark.parametrize(
    ("titles", "error", "message"),
    [
        ({}, ValueError, "titles: got none"),
        ({1: "a", 2: ""}, ValueError, "the title '' of item 2 tokenises to nothing"),
        ([(1, "a"), (2, "b"), (1, "c")], ValueError, "item 1 is given 2 times, expected once"),
        ({1: None}, TypeError, "expected a string for item 1, got None"),
        ({1: b"a"}, TypeError, "expected a string for item 1, got b'a'"),
        ({"1": "a"}, TypeError, "expected integer item ids, got '1'"),
        ({1.0: "a"}, TypeError, r"expected integer item ids, got 1\.0"),
        ({True: "a"}, TypeError, "expected integer item ids, got True"),
    ],
)
def test_bad_titles(sample, titles, error, message):
    with pytest.raises(error, match=message):
        Catalogue.from_titles(titles, sample.tokenizer)
