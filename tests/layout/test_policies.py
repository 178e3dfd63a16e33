# SPDX-License-Identifier: Apache-2.0
"""Policies against tables written out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchrec_fast.layout import (
    Dropout,
    Grain,
    History,
    ItemPatches,
    Policy,
    RandomItemPatches,
    SessionPatches,
    Text,
)

T, I, S, D = Grain.TEXT, Grain.ITEM, Grain.SESSION, Grain.DROPPED  # noqa: E741
ALL = [Text(), ItemPatches(2), SessionPatches(3), RandomItemPatches(0.5), Dropout(0.5)]
ALL += [ItemPatches(2, step=3), SessionPatches(3, anchor="oldest")]


def assign(policy, *lengths, seed=0):
    return policy.assign(History.of(np.array(lengths, np.int64)), np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("policy", "lengths", "grains"),
    [
        (Text(), (3, 1), [T, T, T, T]),
        (ItemPatches(2), (4, 1, 2, 3), [I, I, T, T, T, T, T, I, T, T]),
        (ItemPatches(0), (2,), [I, I]),
        (ItemPatches(9), (2,), [T, T]),
        (SessionPatches(2), (1,), [T]),
        (SessionPatches(2), (2,), [T, T]),
        (SessionPatches(2), (3,), [I, T, T]),
        (SessionPatches(2), (4,), [I, I, T, T]),
        (SessionPatches(2), (5,), [S, I, I, T, T]),
        (SessionPatches(2), (7, 2), [S, S, S, I, I, T, T, T, T]),
        (SessionPatches(1), (4,), [S, S, I, T]),
        (ItemPatches(2, step=3), (1, 4, 5, 8), [T] + [T] * 4 + [I, I, I, T, T] + [I] * 6 + [T, T]),
        (SessionPatches(2, anchor="oldest"), (1, 3, 4), [T] + [T] * 3 + [I, I, T, T]),
        (SessionPatches(2, anchor="oldest"), (5, 6, 7), [I, I, T, T, T, S, S, I, I, T, T, S, S, I, I, T, T, T]),
        (SessionPatches(1, anchor="oldest"), (4,), [S, S, I, T]),
    ],
)
def test_grains(policy, lengths, grains):
    assert assign(policy, *lengths).grain.tolist() == grains


@pytest.mark.parametrize(
    ("group", "length", "runs"),
    [(2, 7, [1, 2]), (2, 8, [2, 2]), (3, 7, [1]), (3, 14, [2, 3, 3]), (20, 1435, [15] + [20] * 69)],
)
def test_sessions_are_aligned_to_the_right(group, length, runs):
    grain, session = assign(SessionPatches(group), length)
    inside = session[grain == S]
    changes = np.flatnonzero(np.diff(inside)) + 1
    assert [len(run) for run in np.split(inside, changes)] == runs


@pytest.mark.parametrize("policy", ALL, ids=repr)
def test_contract(policy):
    lengths = (1, 2, 3, 6, 7, 100, 1)
    grain, session = assign(policy, *lengths)
    assert isinstance(policy, Policy)
    assert grain.shape == session.shape == (sum(lengths),)
    assert grain.dtype == np.uint8
    assert session.dtype == np.int64


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.sampled_from([*ALL[:3], *ALL[5:]]))
def test_users_do_not_influence_each_other(lengths, policy):
    together = assign(policy, *lengths)
    alone = [assign(policy, n) for n in lengths]
    assert together.grain.tolist() == np.concatenate([a.grain for a in alone]).tolist()
    assert together.session.tolist() == np.concatenate([a.session for a in alone]).tolist()


@pytest.mark.parametrize(("policy", "hit"), [(RandomItemPatches, I), (Dropout, D)])
class TestRandom:
    def test_extremes(self, policy, hit):
        assert set(assign(policy(0), 50, 50).grain.tolist()) == {T}
        assert set(assign(policy(1), 50, 50).grain.tolist()) == {hit}

    def test_same_seed_same_result(self, policy, hit):
        first, again, other = (assign(policy(0.5), 200, seed=s).grain for s in (3, 3, 4))
        assert (first == again).all()
        assert (first != other).any()

    def test_frequency(self, policy, hit):
        n, p = 100_000, 0.3
        grain = assign(policy(p), *[100] * (n // 100), seed=7).grain
        assert set(grain.tolist()) == {T, hit}
        # five standard deviations of a binomial share: missed by chance once in two million seeds
        assert abs((grain == hit).mean() - p) < 5 * (p * (1 - p) / n) ** 0.5

    def test_items_are_independent(self, policy, hit):
        n, p = 100_000, 0.5
        chosen = assign(policy(p), n, seed=11).grain == hit
        both = (chosen[1:] & chosen[:-1]).mean()
        assert abs(both - p * p) < 5 * (p * p * (1 - p * p) / n) ** 0.5 * 2  # neighbours overlap

    @pytest.mark.parametrize("p", [-0.01, 1.01, float("nan")])
    def test_not_a_probability(self, policy, hit, p):
        with pytest.raises(ValueError, match=rf"{policy.__name__}\.p: expected a probability"):
            policy(p)

    @pytest.mark.parametrize("p", ["0.5", None, True])
    def test_not_a_number(self, policy, hit, p):
        with pytest.raises(TypeError, match=rf"{policy.__name__}\.p: expected a number"):
            policy(p)


@pytest.mark.parametrize("size", [10**30, 2**63, np.uint8(200), np.int8(127)])
def test_far_more_than_there_are(size):
    """All text, whatever type the number has."""
    for policy in (SessionPatches(size), ItemPatches(size)):
        assert set(assign(policy, 100, 1).grain.tolist()) == {T}


@pytest.mark.parametrize(
    ("make", "bad", "error", "message"),
    [
        (ItemPatches, -1, ValueError, r"ItemPatches\.keep: expected at least 0, got -1"),
        (ItemPatches, 5.0, TypeError, r"ItemPatches\.keep: expected an int"),
        (lambda n: ItemPatches(2, step=n), 0, ValueError, r"ItemPatches\.step: expected at least 1, got 0"),
        (lambda name: SessionPatches(2, name), "old", ValueError, r"SessionPatches\.anchor: expected 'newest' or"),
        (SessionPatches, 0, ValueError, r"SessionPatches\.group: expected at least 1, got 0"),
        (SessionPatches, True, TypeError, r"SessionPatches\.group: expected an int"),
    ],
)
def test_bad_parameters(make, bad, error, message):
    with pytest.raises(error, match=message):
        make(bad)


def test_repr_leaves_out_defaults():
    assert repr(ItemPatches(2)) == "ItemPatches(keep=2)"
    assert repr(ItemPatches(2, step=3)) == "ItemPatches(keep=2, step=3)"
    assert repr(SessionPatches(5, anchor="oldest")) == "SessionPatches(group=5, anchor='oldest')"


@pytest.mark.parametrize("size", range(1, 6))
def test_appending_keeps_all_but_the_newest_part(size):
    """While no group closes and no step is full, every old item stays what it was; where one is, all but two groups."""
    sessions, items = SessionPatches(size, anchor="oldest"), ItemPatches(size, step=3)
    for n in range(1, 60):
        for policy, step, back in ((sessions, size, 2 * size), (items, 3, size + 3)):
            (grain, session), after = assign(policy, n), assign(policy, n + 1)
            full = (n + 1 - size * (policy is items)) % step == 0
            stays = max(0, n + 1 - back - step * (policy is sessions)) if full else n
            assert grain[:stays].tolist() == after.grain[:stays].tolist()
            assert session[:stays].tolist() == after.session[:stays].tolist()


def test_one_draw_for_an_item_in_several_histories():
    positions = np.array([0, 1, 2, 0, 1, 2, 3, 5])
    found = RandomItemPatches(0.5).assign(History(np.array([3, 4, 1]), positions, 6), np.random.default_rng(1)).grain
    assert found.tolist() == assign(RandomItemPatches(0.5), 6, seed=1).grain[positions].tolist()
