# SPDX-License-Identifier: Apache-2.0
"""Samples of a split against a loop over the definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchrec_fast.data import Dataset


def by_definition(dataset, name, max_items, min_position):
    """The history of the target at position i is items[max(0, i - K):i]."""
    histories, targets = [], []
    for user, (first, last) in enumerate(dataset.splits[name].tolist()):
        items = dataset.items[dataset.offsets[user] : dataset.offsets[user + 1]].tolist()
        if first == -1:
            continue
        for i in range(first, last + 1):
            if i >= min_position:
                histories.append(items[max(0, i - (max_items or i)) : i])
                targets.append(items[i])
    return histories, targets


@st.composite
def datasets(draw):
    lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=6))
    ends = []
    for n in lengths:
        first = draw(st.integers(-1, n - 1))
        ends.append((first, -1 if first == -1 else draw(st.integers(first, n - 1))))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = np.random.default_rng(len(lengths)).permutation(offsets[-1]).astype(np.int32)
    splits = {"test": np.array(ends, np.int32)}
    return Dataset(items, offsets, {int(i): f"t{i}" for i in items}, splits)


@given(datasets(), st.none() | st.integers(1, 13), st.integers(1, 5))
def test_split(dataset, max_items, min_position):
    (flat, offsets), targets = dataset.split("test", max_items, min_position)
    histories, wanted = by_definition(dataset, "test", max_items, min_position)
    assert targets.tolist() == wanted
    assert offsets[0] == 0
    assert offsets[-1] == len(flat)
    assert [h.tolist() for h in np.split(flat, offsets[1:-1])][: len(wanted)] == histories
    assert flat.dtype == targets.dtype == np.int32
    assert offsets.dtype == np.int64


@given(datasets(), st.integers(1, 13), st.integers(1, 15))
def test_the_oldest_items_leave_so_many_at_a_time(dataset, max_items, step):
    (flat, offsets), _ = dataset.split("test", max_items, 1, step=step)
    whole, _ = by_definition(dataset, "test", None, 1)
    for cut, history in zip(np.split(flat, offsets[1:-1]), whole, strict=False):
        kept = list(history)
        while len(kept) - step >= max_items:
            del kept[:step]
        assert cut.tolist() == kept


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "dev"}, r"name: expected one of \['test'\], got 'dev'"),
        ({"name": "test", "max_items": 0}, "max_items: expected at least 1, got 0"),
        ({"name": "test", "min_position": 0}, "min_position: expected at least 1, got 0"),
        ({"name": "test", "step": 0}, "step: expected at least 1, got 0"),
    ],
)
def test_bad_requests(given, message):
    dataset = Dataset(np.array([1], np.int32), np.array([0, 1]), {1: "a"}, {"test": np.array([[0, 0]], np.int32)})
    with pytest.raises(ValueError, match=message):
        dataset.split(**given)


GOOD = {
    "items": [3, 1, 2, 2],
    "offsets": [0, 3, 4],
    "titles": {1: "a", 2: "b", 3: "c"},
    "splits": {"train": [[0, 0], [0, 0]], "val": [[1, 1], [-1, -1]], "test": [[2, 2], [-1, -1]]},
}
INTEGERS = [np.dtype(f"{sign}int{bits}").type for sign in ("", "u") for bits in (8, 16, 32, 64)]


@pytest.mark.parametrize(
    "convert",
    [
        *[lambda values, kind=kind: np.asarray(values).astype(kind) for kind in (*INTEGERS, np.float32, np.float64)],
        lambda values: np.asarray(values, object),
        lambda values: [INTEGERS[n % 8](v) for n, v in enumerate(values)],  # mixed, which NumPy makes floats of
        tuple,
    ],
)
def test_whole_numbers_of_any_type(convert):
    dataset = Dataset(
        convert(GOOD["items"]),
        convert(GOOD["offsets"]),
        {kind(item): title for kind, (item, title) in zip(INTEGERS[3:], GOOD["titles"].items(), strict=False)},
        {name: np.asarray(values, np.float64) for name, values in GOOD["splits"].items()},
    )
    assert dataset.items.tolist() == GOOD["items"]
    assert (dataset.items.dtype, dataset.offsets.dtype) == (np.int32, np.int64)
    assert dataset.titles == GOOD["titles"]
    assert {type(item) for item in dataset.titles} == {int}
    assert {name: values.tolist() for name, values in dataset.splits.items()} == GOOD["splits"]
    assert {values.dtype for values in dataset.splits.values()} == {np.dtype(np.int32)}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        *[({"items": [3, 1, bad, 2]}, f"items: expected whole numbers from 0 to 2147483647, got {bad} at 2")
          for bad in (-1, 2**31, 2**63, 2**64, 10**30, 1.5, float("nan"), float("inf"))],
        ({"items": np.array([3, 1, -1, 2], np.int8)}, "items: .* got -1 at 2"),
        ({"items": np.array([3, 1, 2**64 - 1, 2], np.uint64)}, "items: .* got 18446744073709551615 at 2"),
        ({"items": [True] * 4}, "items: expected whole numbers, got bool"),
        ({"items": ["1"] * 4}, "items: expected whole numbers, got <U1"),
        ({"items": [None] * 4}, "items: expected a whole number, got None"),
        ({"items": [[3, 1], [2, 2]]}, r"items: expected one dimension, got the shape \(2, 2\)"),
        ({"offsets": [0, 3]}, "offsets: .* from 0 to the 4 items, got 0 to 3"),
        ({"offsets": [1, 3, 4]}, "offsets: .* got 1 to 4"),
        ({"offsets": []}, "offsets: "),
        ({"offsets": [0, 0, 4]}, "offsets: the user in row 0 has no items"),
        ({"offsets": [0, 5, 4]}, "offsets: the user in row 1 ends at 4, before it begins at 5"),
        ({"offsets": [0, 2.5, 4]}, r"offsets: .* got 2\.5 at 1"),
        ({"titles": [(1, "a")]}, "titles: expected item id -> title, got list"),
        ({"titles": {1: "a", 3: "c"}}, "titles: 1 items of users have none, the first is 2"),
        ({"titles": {**GOOD["titles"], "4": "d"}}, "titles: expected a whole number, got '4'"),
        ({"titles": {**GOOD["titles"], -1: "d"}}, "titles: expected item ids from 0 to 2147483647, got -1"),
        ({"titles": {**GOOD["titles"], 2**31: "d"}}, "titles: .* got 2147483648"),
        ({"titles": {**GOOD["titles"], 4: None}}, "titles: the title of item 4 is None, expected a string"),
        *[({"titles": {**GOOD["titles"], 4: title}}, "titles: item 4 has a title that shows nothing")
          for title in ("", " ", "\t\n", "\0", "\x1b\x07", "\u200b", "\u202e", "\u200d", "\xad \xa0")],
        ({"titles": {**GOOD["titles"], 4: "\ud800x"}}, "titles: the title of item 4 has a lone surrogate"),
        ({"splits": {"train": [[0, 1], [0, 0]], "val": [[1, 1], [-1, -1]]}},
         "the user in row 0 train has the positions 0 to 1 and val 1 to 1"),
        ({"splits": {"train": [[0, 1], [0, 0]], "test": [[2, 2], [0, 0]]}},
         "the user in row 1 train has the positions 0 to 0 and test 0 to 0"),
        ({"splits": {"val": [[0, 2], [-1, -1]], "test": [[1, 1], [-1, -1]]}}, "row 0 val .* 0 to 2 and test 1 to 1"),
        ({"splits": {"val": [[0, 3], [-1, -1]]}}, "splits: val: first, last of row 0 are 0, 3, expected .* < 3"),
        ({"splits": {"val": [[2, 1], [-1, -1]]}}, "splits: val: first, last of row 0 are 2, 1"),
        ({"splits": {"val": [[0, 0], [-1, 0]]}}, "splits: val: first, last of row 1 are -1, 0"),
        ({"splits": {"val": [[0, 0]]}}, r"splits: val: expected the shape \(2, 2\), got \(1, 2\)"),
        ({"splits": {"val": [[0, 0], [0.5, 1]]}}, r"splits: val: expected whole numbers .* got 0\.5"),
    ],
    ids=repr,
)  # fmt: skip
def test_a_dataset_that_is_none(changes, said):
    with pytest.raises((ValueError, TypeError), match=said):
        Dataset(**{**GOOD, **changes})


@pytest.mark.parametrize("bound", [10**9, 10**30, np.int64(3), 4.0])
def test_absurd_bounds_are_only_bounds(bound):
    dataset = Dataset(**{**GOOD, "splits": {"test": [[2, 2], [-1, -1]]}})
    assert dataset.split("test", bound, 1).targets.tolist() == [2]
    assert dataset.split("test", None, bound).targets.tolist() == []
    for bad in ({"max_items": 1.5}, {"max_items": True}, {"min_position": "3"}, {"min_position": None}):
        with pytest.raises(TypeError, match=f"{next(iter(bad))}: expected a whole number"):
            dataset.split("test", **bad)
