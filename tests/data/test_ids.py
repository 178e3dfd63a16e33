# SPDX-License-Identifier: Apache-2.0
"""Own ids against a list that is searched from its beginning."""

import pickle

import numpy as np
import pytest

from patchrec_fast.data import Dataset, Ids

PIECES = ("7", "007", "0", "-3", "a", "A", "é", " ", "_", "\uff11", "1e3", "4.0", "x y", "-0", "+5", "\n")


def catalogue(rng):
    """Numbers and own ids of one kind, all written differently."""
    kind = rng.choice(["small", "large", "negative", "text", "digits", "mixed", "beyond"])
    draws = {
        "small": lambda: int(rng.integers(0, 50)),
        "large": lambda: int(rng.integers(2**31, 2**62)),
        "negative": lambda: -int(rng.integers(0, 2**40)),
        "text": lambda: "".join(rng.choice(PIECES, rng.integers(1, 4))),
        "digits": lambda: f"{rng.integers(0, 50):0{rng.integers(1, 5)}d}",
        "beyond": lambda: int(rng.integers(1, 9)) * 2**61 - int(rng.integers(0, 2)) * 2**63,
    }
    names = list(draws)
    own = [draws[rng.choice(names) if kind == "mixed" else kind]() for _ in range(rng.integers(1, 40))]
    own = list({str(each): each for each in own}.values())
    numbers = rng.permutation(500)[: len(own)].tolist()
    return numbers, own


@pytest.mark.parametrize("seed", range(100))
def test_random_catalogues(seed):
    rng = np.random.default_rng(seed)
    numbers, own = catalogue(rng)
    ids = Ids(numbers, own)
    texts = [str(each) for each in own]
    assert len(ids) == len(own)
    assert [str(each) for each in ids] == texts
    assert ids.of_all(numbers) == list(ids)
    signed, unsigned = (
        all(isinstance(each, int) and least <= each < most for each in own)
        for least, most in ((-(2**63), 2**63), (0, 2**64))
    )
    assert {type(each) for each in ids} == {int if signed or unsigned else str}
    for wanted in [*own, *texts, *(int(rng.integers(-9, 99)) for _ in range(20)), *PIECES]:
        if str(wanted) in texts:
            assert ids.find(wanted) == numbers[texts.index(str(wanted))]
            assert wanted in ids
        else:
            assert wanted not in ids
            with pytest.raises(ValueError, match="no thing"):
                ids.find(wanted, "thing")
    some = rng.permutation(len(own))[:7].tolist()
    assert ids.find_all([own[at] for at in some]).tolist() == [numbers[at] for at in some]
    fewer = ids.only([numbers[at] for at in some])
    assert [str(each) for each in fewer] == [texts[at] for at in some]
    assert list(pickle.loads(pickle.dumps(ids))) == list(ids)


@pytest.mark.parametrize("first", [0, 1, -4])
def test_ids_that_are_numbers_plus_something(first):
    numbers = {5: "a title", 0: "", 17: ""}
    ids = Ids(numbers, first=first)
    assert ids.same == (first == 0)
    assert list(ids) == [5 + first, first, 17 + first]
    assert ids.find(str(17 + first)) == ids.find(17 + first) == 17
    for stranger in (18 + first, "x", f"0{5 + first}", f" {5 + first}", "1" * 5000, 2**70):
        assert stranger not in ids
        with pytest.raises(ValueError, match=r"no item .* among the 3 of the data"):
            ids.find(stranger)
    with pytest.raises(ValueError, match=r"number: expected one of 3 items or users, got 1$"):
        ids.of(1)


def test_identity_holds_nothing():
    ids = Ids(range(10**12))
    assert ids.find("999999999999") == ids.of(999_999_999_999) == 10**12 - 1
    assert -1 not in ids
    assert 10**12 not in ids


@pytest.mark.parametrize(
    ("own", "wanted", "hint"),
    [
        (["007", "700", "x"], 7, "'007'"),
        (["SKU-17", "SKU-99"], "sku-17", "'SKU-17' or 'SKU-99'"),
        (["banana", "apple"], "bananna", "'banana'"),
        ([12345, 99], "12346", "12345"),
    ],
)
def test_what_was_meant(own, wanted, hint):
    with pytest.raises(ValueError, match=f"no user {wanted!r} among .* did you mean {hint}"):
        Ids(range(len(own)), own).find(wanted, "user")


@pytest.mark.parametrize("wanted", ["zzz", "", "\ud800"])
def test_nothing_was_meant(wanted):
    with pytest.raises(ValueError, match=r"among the 2 of the data$"):
        Ids(range(2), ["ab", "cd"]).find(wanted)


def test_many_strangers_are_counted():
    ids = Ids(range(2), ["ab", "cd"])
    with pytest.raises(ValueError, match=r"no item 'q' .*\(2 of the 3 ids are not there\)"):
        ids.find_all(["q", "ab", 9])
    assert ids.find_all([]).tolist() == []


@pytest.mark.parametrize(
    ("own", "error", "said"),
    [
        (["a", "a", "b"], ValueError, "'a' is given 2 times"),
        ([1, "1"], ValueError, "'1' is given 2 times"),
        ([1, np.int8(1)], ValueError, "1 is given 2 times"),
        (["a"], ValueError, "expected one for each of 2, got 1"),
        (["\ud800", "a"], ValueError, "lone surrogate"),
        ([1.5, 2], TypeError, "expected whole numbers or text, got 1.5"),
        ([True, 2], TypeError, "got True"),
        ([None, 2], TypeError, "got None"),
    ],
)
def test_ids_that_are_none(own, error, said):
    numbers = range(3 if len(own) == 3 else 2)
    with pytest.raises(error, match=said):
        Ids(numbers, own)


@pytest.mark.parametrize("wanted", [1.0, None, True, b"a"])
def test_looking_for_what_is_no_id(wanted):
    with pytest.raises(TypeError, match="expected whole numbers or text"):
        Ids(range(2), ["a", "b"]).find(wanted)


PLAIN = {"items": [1, 2, 1], "offsets": [0, 2, 3], "titles": {2: "b", 1: "a"}, "splits": {}}


class TestOfADataset:
    def test_the_numbers_themselves(self):
        dataset = Dataset(**PLAIN)
        assert dataset.item_ids.same
        assert dataset.user_ids.same
        assert (list(dataset.item_ids), list(dataset.user_ids)) == ([2, 1], [0, 1])

    def test_given(self):
        dataset = Dataset(**PLAIN, item_ids=Ids([1, 2, 3], ["x", "y", "z"]), user_ids=Ids(range(2), ["u", "v"]))
        assert list(dataset.item_ids) == ["y", "x"]
        assert dataset.item_ids.find("y") == 2
        assert "z" not in dataset.item_ids  # it has no title
        assert dataset.user_ids.find("v", "user") == 1

    @pytest.mark.parametrize(
        ("ids", "error", "said"),
        [
            ({"item_ids": Ids([1], ["x"])}, ValueError, "item_ids: an item with a title has none"),
            ({"item_ids": {1: "x"}}, TypeError, "item_ids: expected Ids or None, got dict"),
            ({"user_ids": Ids(range(3))}, ValueError, "user_ids: expected one for each of 2 users, got 3"),
            ({"user_ids": Ids([4, 5], ["x", "y"])}, ValueError, "number: expected one of 2 items or users, got 0"),
            ({"user_ids": ["x", "y"]}, TypeError, "user_ids: expected Ids or None, got list"),
        ],
    )
    def test_refused(self, ids, error, said):
        with pytest.raises(error, match=said):
            Dataset(**PLAIN, **ids)
