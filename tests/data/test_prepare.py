# SPDX-License-Identifier: Apache-2.0
"""The rules, against the same rules written with dictionaries and lists."""

from collections import Counter

import numpy as np
import pytest

from patchrec_fast.data.prepare import RULES, Rules, prepare
from tests.data.raw import Rows


def brute(rows, rules, titles):
    """Item lists by user, users in order of their first kept interaction."""
    kept = [row for row in rows if rules.above_rating is None or row[3] > rules.above_rating]
    earliest = {}
    for place, (user, item, time, _) in enumerate(kept):
        if (user, item) not in earliest or time < earliest[user, item][0]:
            earliest[user, item] = (time, place)
    chosen = {place for _, place in earliest.values()}
    left = [row for place, row in enumerate(kept) if place in chosen and row[1] in titles]
    counted = rows if rules.counted == "all" else left
    users, items = Counter(row[0] for row in counted), Counter(row[1] for row in counted)
    sequences = {}
    for user, item, time, _ in left:
        if users[user] >= rules.min_user and items[item] >= rules.min_item:
            sequences.setdefault(user, []).append((time, item))
    return {user: [item for _, item in sorted(pairs, key=lambda pair: pair[0])] for user, pairs in sequences.items()}


@pytest.mark.parametrize(
    "rules",
    [
        Rules(),
        Rules(above_rating=3),
        Rules(above_rating=3, min_user=3, min_item=2),
        Rules(above_rating=2, min_user=6, min_item=4, counted="all"),
        Rules(min_user=2, untitled="drop"),
    ],
)
def test_against_brute_force(rules):
    rng = np.random.default_rng(0)
    for _ in range(30):
        n = int(rng.integers(100, 180))
        users, items, times, ratings = (rng.integers(0, high, n) for high in (9, 12, 15, 6))
        named = range(8 if rules.untitled == "drop" else 12)
        titles = {item: f"title {item}" for item in named} | {50: "of no interaction"}
        titles |= dict.fromkeys(range(len(named), 10), "")
        got = prepare(Rows(users, items, times, ratings, titles), rules)
        want = brute(list(zip(*(c.tolist() for c in (users, items, times, ratings)), strict=True)), rules, set(named))
        assert list(got.dataset.user_ids) == [f"user {user}" for user in want]
        sequences = np.split(got.dataset.items, got.dataset.offsets[1:-1])
        assert [sequence.tolist() for sequence in sequences] == list(want.values())
        assert set(got.dataset.titles) == set(got.dataset.items.tolist())
        assert got.counts["frequent enough"] == len(got.dataset.items)


def test_chunks_do_not_matter():
    rng = np.random.default_rng(1)
    columns = [rng.integers(0, high, 200) for high in (20, 30, 9, 6)]
    rules = Rules(above_rating=1, min_user=4, counted="all")
    one, many = (prepare(Rows(*columns, chunk=chunk), rules) for chunk in (1000, 1))
    assert one.dataset.items.tolist() == many.dataset.items.tolist()
    assert list(one.dataset.user_ids) == list(many.dataset.user_ids)
    assert one.counts == many.counts


def test_of_a_repeated_pair_the_earliest_stays():
    got = prepare(Rows([0, 0, 0, 0], [1, 2, 1, 1], [9, 5, 4, 4]), Rules())
    assert got.dataset.items.tolist() == [1, 2]
    assert got.counts["one of each pair"] == 2


def test_equal_times_keep_the_order_of_the_file():
    items = np.random.default_rng(2).permutation(500)
    got = prepare(Rows([0] * 500, items, [7] * 500, chunk=64), Rules())
    assert got.dataset.items.tolist() == items.tolist()


def test_the_whole_catalogue_or_the_used():
    titles = {0: "a", 1: "b", 2: "never used"}
    source = Rows([0, 0, 1], [0, 1, 0], [1, 2, 3], titles=titles)
    assert prepare(source, Rules(catalogue="all")).dataset.titles == titles
    assert prepare(source, Rules(min_user=2)).dataset.titles == {0: "a", 1: "b"}
    assert prepare(source, Rules(min_item=2)).dataset.titles == {0: "a"}


def test_an_item_without_a_title():
    source = Rows([0, 0], [0, 1], [1, 2], titles={0: "a", 1: ""})
    with pytest.raises(ValueError, match="1 items have no title, the first is 1"):
        prepare(source, Rules())
    assert prepare(source, Rules(untitled="drop")).dataset.items.tolist() == [0]


@pytest.mark.parametrize(
    "rules", [Rules(above_rating=5), Rules(min_user=9), Rules(min_item=9), Rules(min_item=9, counted="all")]
)
def test_nothing_left(rules):
    with pytest.raises(ValueError, match="no interactions are left by the rules: read 3, "):
        prepare(Rows([0, 0, 1], [0, 1, 0], [1, 2, 3], [4, 5, 5]), rules)


def test_no_interactions_at_all():
    with pytest.raises(ValueError, match="rows: no interactions"):
        prepare(Rows([], [], []), Rules())


def test_ratings_wanted_where_there_are_none():
    with pytest.raises(ValueError, match="above_rating: expected None"):
        prepare(Rows([0], [0], [0]), Rules(above_rating=3))


@pytest.mark.parametrize(
    ("name", "value"),
    [("min_user", 0), ("min_item", -1), ("counted", "some"), ("untitled", "keep"), ("catalogue", "none")],
)
def test_rules_that_are_none(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        Rules(**{name: value})


def test_the_papers_rules():
    assert RULES["movielens"].above_rating == 3
    assert (RULES["ml-100k"].above_rating, RULES["ml-100k"].min_user) == (3, 21)
    goodreads = RULES["goodreads"]
    assert (goodreads.above_rating, goodreads.min_user, goodreads.min_item) == (4, 50, 10)
