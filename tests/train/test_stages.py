# SPDX-License-Identifier: Apache-2.0
"""Stages: their policies, and the probability that rises."""

import dataclasses
import pickle

import pytest

import patchrec_fast as pf
from patchrec_fast.train import STAGES, Stage, stage


def test_fine_tuning_keeps_one_policy():
    expected = {"text": pf.Text(), "pft-i": pf.ItemPatches(3), "pft-s": pf.SessionPatches(4)}
    for name, policy in expected.items():
        one = stage(name, keep=3, group=4)
        assert one.policy(0.0) == one.policy(0.7) == one.final == one.longest == policy
        assert not one.twin


@pytest.mark.parametrize(("name", "policy"), [("pretrain", pf.RandomItemPatches), ("dropout", pf.Dropout)])
def test_random_stages_rise_and_are_used_on_text(name, policy):
    one = stage(name)
    assert [one.policy(progress) for progress in (0, 0.25, 1)] == [policy(0), policy(0.25), policy(1)]
    assert one.twin
    assert one.final == one.longest == pf.Text()
    constant = stage(name, p=0.3)
    assert constant.policy(0.0) == constant.policy(1.0) == policy(0.3)


def test_defaults_are_the_papers():
    assert stage("pft-i").final == pf.ItemPatches(5)
    assert stage("pft-s").final == pf.SessionPatches(5)


def test_stages_pickle():
    assert [pickle.loads(pickle.dumps(stage(name))) for name in STAGES] == [stage(name) for name in STAGES]


def test_a_stage_of_ones_own():
    own = dataclasses.replace(stage("pretrain"), name="own", twin=False)
    assert own == Stage("own", pf.Text(), pf.RandomItemPatches)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "pft"}, ValueError, "stage: expected one of text, .*, history, got 'pft'"),
        ({"name": "pft-i", "keep": -1}, ValueError, "keep"),
        ({"name": "pft-s", "group": 0}, ValueError, "group"),
        ({"name": "pft-s", "group": 2.5}, TypeError, "group"),
        ({"name": "pretrain", "p": 1.5}, ValueError, "p: expected a probability"),
        ({"name": "dropout", "p": "half"}, TypeError, "p: expected a number"),
    ],
)
def test_errors_name_the_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        stage(**arguments)
