# SPDX-License-Identifier: Apache-2.0
"""Models that share a configuration object, or a copy of an attached one's, are attached and detached in any order."""

import copy
import itertools

import pytest
import torch

import patchrec_fast as pf
from patchrec_fast.hf import configured
from patchrec_fast.hf.attach import is_attached

HISTORIES = [[3, 1, 2], [5]]


@pytest.fixture
def twins(make_model):
    first = make_model("llama")
    second = type(first)(first.config).eval()
    second.load_state_dict(first.state_dict())
    assert second.config is first.config
    return first, second


@pytest.fixture
def recommend(sample):
    packer = pf.Packer(sample.catalogue, sample.prompt, pf.Text())
    return lambda model: pf.Recommender(model, packer).recommend(HISTORIES, k=3).items.tolist()


@pytest.mark.parametrize("order", list(itertools.permutations([0, 1])))
@pytest.mark.parametrize("attention", ["auto", "masked"])
def test_any_order(twins, recommend, order, attention):
    before, held = twins[0].config._attn_implementation, dict(configured._held)
    expected = recommend(twins[0])
    handles = [None, None]
    for at in (0, 1):
        handles[at] = pf.attach(twins[at], attention)
        assert [is_attached(model) for model in twins] == [at >= 0, at >= 1]
        assert [recommend(model) for model in twins] == [expected, expected]
    for at in order:
        handles[at].detach()
        handles[at].detach()
        assert [recommend(model) for model in twins] == [expected, expected]
    assert twins[0].config._attn_implementation == before
    assert configured._held == held


def test_a_copy_of_an_attached_models_configuration(make_model, recommend):
    first = make_model("llama")
    expected = recommend(first)
    handle = pf.attach(first)
    second = type(first)(copy.deepcopy(first.config)).eval()
    second.load_state_dict(first.state_dict())
    ids = torch.arange(8)[None]
    logits = first(input_ids=ids).logits
    assert recommend(second) == expected
    handle.detach()
    assert recommend(second) == expected
    torch.testing.assert_close(second(input_ids=ids).logits, logits)


@pytest.mark.parametrize("names", [("masked", "auto"), ("sdpa", "varlen"), ("auto", "eager")])
def test_one_configuration_has_one_attention(twins, names):
    before = twins[0].config._attn_implementation
    handle = pf.attach(twins[0], names[0])
    name = twins[0].config._attn_implementation
    with pytest.raises(ValueError, match="shares its configuration"):
        pf.attach(twins[1], names[1])
    assert twins[0].config._attn_implementation == name
    assert not is_attached(twins[1])
    handle.detach()
    assert twins[0].config._attn_implementation == before


def test_an_attention_that_cannot_decode(twins, recommend):
    pf.attach(twins[0], "sdpa")
    for model in twins:
        with pytest.raises(ValueError, match="attached already, with attention 'sdpa'"):
            recommend(model)
    assert not is_attached(twins[1])
