# SPDX-License-Identifier: Apache-2.0
"""Catalogue: tokens of every title, and ids to positions."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from tokenizers import normalizers

from patchrec_fast.data import Ids
from patchrec_fast.layout import Catalogue, Packer, Text

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
        ({3: "a", -1: "b"}, ValueError, "titles: expected no negative number, got -1"),
        ({3: "a", 2**63: "b"}, ValueError, r"titles: expected numbers up to 2\*\*63 - 1, got 9223372036854775808"),
        ({np.uint64(2**63): "b"}, ValueError, r"titles: expected numbers up to 2\*\*63 - 1, got 9223372036854775808"),
        ({4: "a\ud800"}, ValueError, r"titles: the title 'a\\ud800' of item 4 is not Unicode"),
    ],
)
def test_bad_titles(sample, titles, error, message):
    with pytest.raises(error, match=message):
        Catalogue.from_titles(titles, sample.tokenizer)


def test_titles_of_the_same_tokens_are_one_answer(sample):
    """Named, a few of them, with the items; nothing is said of those that are the same string."""
    tokenizer = copy.deepcopy(sample.tokenizer)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    titles = {9: "HEAT", 2: "Up", 3: "Heat", 4: "heat", 5: "Up"}
    with pytest.warns(
        UserWarning, match="titles: 2 differ .* 'Heat' of item 3 and the title 'HEAT' of item 9; "
    ) as said:
        found = Catalogue.from_titles(titles, tokenizer)
    assert len(said) == 1
    assert found.answers.tolist() == [0, 1, 0, 0, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Catalogue.from_titles({1: "Up", 2: "Up", 3: "Heat"}, tokenizer).answers.tolist() == [0, 0, 1]


def test_titles_of_unknown_tokens(sample):
    """All titles in another script are one to such a tokenizer."""
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "heat": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    with pytest.warns(UserWarning, match="titles: ") as said:
        found = Catalogue.from_titles({1: "七人の侍", 2: "heat", 3: "乱"}, tokenizer)
    texts = sorted(str(each.message) for each in said)
    assert "1 differ from another title" in texts[0]
    assert "'七人の侍' of item 1" in texts[0]
    assert "2 are unknown tokens alone" in texts[1]
    assert "'乱' of item 3" in texts[1]
    assert found.answers.tolist() == [0, 1, 0]


def test_the_end_of_turn_inside_a_title(sample):
    end = sample.prompt.end_of_turn
    catalogue = Catalogue(np.array([5, end], np.int32), np.array([0, 1, 2], np.int32), np.array([8, 9]), ["a", "b"])
    with pytest.raises(ValueError, match="catalogue: the title 'b' of item 9 holds the end-of-turn token"):
        Packer(catalogue, sample.prompt, Text())


def test_negative_ids_without_a_tokenizer():
    with pytest.raises(ValueError, match="item_ids: expected no negative number, got -1"):
        Catalogue(np.array([5], np.int32), np.array([0, 1], np.int32), np.array([-1]), ["a"])


def test_own_ids(sample):
    ids = Ids([7, 3, 5], ["x-1", "x-2", "x-3"])
    catalogue = Catalogue.from_titles({5: "Up", 7: "Heat"}, sample.tokenizer, ids)
    assert catalogue.own(np.array([7, 5, 7])) == ["x-1", "x-3", "x-1"]
    assert catalogue.name(0) == "the title 'Up' of item 'x-3'"
    assert Catalogue.from_titles({5: "Up"}, sample.tokenizer).own(np.array([5])) == [5]
    with pytest.raises(ValueError, match="number: expected one of 3 items or users, got 4"):
        Catalogue.from_titles({5: "Up", 4: "Heat"}, sample.tokenizer, ids)
    with pytest.raises(ValueError, match="the title '' of item 'x-3' tokenises to nothing"):
        Catalogue.from_titles({5: ""}, sample.tokenizer, ids)
