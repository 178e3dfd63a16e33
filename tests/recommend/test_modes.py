# SPDX-License-Identifier: Apache-2.0
"""Answers under torch's modes and in mixed precision, and nothing that one call keeps is in the next one's way."""

import itertools
from contextlib import nullcontext

import numpy as np
import pytest
import torch

import patchrec_fast as pf
from patchrec_fast.recommend import modes

METHODS = ["beam", "exact", "diverse"]
BFLOAT16, FLOAT16 = (lambda dtype=dtype: torch.autocast("cpu", dtype) for dtype in (torch.bfloat16, torch.float16))
MODES = {
    "grad": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": BFLOAT16,
}


@pytest.fixture
def calm(make_model):
    """Weights as models have them: with the suite's wide ones, logits of 100 have rounding errors of 1 in bfloat16."""
    return lambda family="llama", **options: make_model(family, initializer_range=0.1, **options)


def assert_near(rec, histories, table):
    """k titles, best first, with the log-probabilities of the table (B, I) within a low precision's rounding."""
    np.testing.assert_allclose(rec.scores(histories), table, rtol=0.02, atol=0.05)
    place = rec.packer.catalogue.index
    for method in METHODS:
        found = rec.recommend(histories, k=4, method=method)
        assert (found.items >= 0).all()
        assert (np.diff(found.scores) <= 0).all()
        wanted = np.take_along_axis(table, place(found.items.reshape(-1)).reshape(found.items.shape), 1)
        np.testing.assert_allclose(found.log_probs, wanted, rtol=0.02, atol=0.05)
    assert (rec.rank(histories, [1] * len(histories)) >= 1).all()


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma2"])
@pytest.mark.parametrize("autocast", [BFLOAT16, FLOAT16], ids=["bfloat16", "float16"])
def test_autocast(calm, packer, histories, family, autocast):
    rec = pf.Recommender(calm(family), packer)
    table = rec.scores(histories)
    with autocast():
        assert_near(rec, histories, table)
        assert_near(pf.Recommender(calm(family), packer), histories, table)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_with_parts_in_float32(calm, packer, histories, dtype):
    """Norms, and the head, as parts that are kept wide while training in autocast."""
    table = pf.Recommender(calm("qwen3"), packer).scores(histories)
    model = calm("qwen3").to(dtype)
    assert_near(pf.Recommender(model, packer), histories, table)
    for layer in model.model.layers:
        layer.self_attn.q_norm.float()
        layer.self_attn.k_norm.float()
    model.lm_head.float()
    for norm in [model.model.norm, *(layer.input_layernorm for layer in model.model.layers)]:
        norm.float()
    with torch.autocast("cpu", dtype):
        assert_near(pf.Recommender(model, packer), histories, table)


def test_a_forward_that_accelerate_left_in_autocast(calm, packer, histories):
    """As after `Trainer(bf16=True)`; its models, and those of `torch.compile` and DDP, are called inside."""
    accelerate = pytest.importorskip("accelerate")
    table = pf.Recommender(calm(), packer).scores(histories)
    model = calm()
    pf.attach(model)
    accelerate.state.AcceleratorState._reset_state(True)  # of another test
    accelerate.Accelerator(mixed_precision="bf16", cpu=True).prepare_model(model)
    accelerate.state.AcceleratorState._reset_state(True)
    model.train()
    rec = pf.Recommender(model, packer)
    assert_near(rec, histories, table)
    assert model.training


def test_a_compiled_model(calm, packer, histories):
    expected = pf.Recommender(calm(), packer).recommend(histories, k=4).items
    found = pf.Recommender(torch.compile(calm()), packer).recommend(histories, k=4).items
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(MODES, 2)))
def test_one_mode_after_another_inside_an_engine(calm, packer, histories, first, second):
    """As a recommender that was called in one mode, in the same order: bit for bit, what is kept included."""
    rec, plain = pf.Recommender(calm(), packer), pf.Recommender(calm(), packer)
    options = {"k": 4, "exclude_seen": True}
    with rec.engine(), plain.engine():
        for mode, users in [(first, histories), (second, histories[::-1]), (first, histories)]:
            with MODES["autocast" if mode == "autocast" else "no_grad"]():
                expected, table = plain.recommend(users, **options), plain.scores(users)
            with MODES[mode]():
                found = rec.recommend(users, **options)
                np.testing.assert_array_equal(found.items, expected.items)
                np.testing.assert_array_equal(found.log_probs, expected.log_probs)
                np.testing.assert_array_equal(rec.scores(users), table)


@pytest.mark.parametrize("device", ["meta", None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_defaults_for_new_tensors(calm, packer, histories, device, dtype):
    rec = pf.Recommender(calm(), packer)
    expected = [rec.recommend(histories, k=4, method=method, exclude_seen=True) for method in METHODS]
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device) if device else nullcontext():
            for method, wanted in zip(METHODS, expected, strict=True):
                found = rec.recommend(histories, k=4, method=method, exclude_seen=True)
                assert found.log_probs.dtype == np.float32
                np.testing.assert_array_equal(found.items, wanted.items)
                np.testing.assert_array_equal(found.scores, wanted.scores)
    finally:
        torch.set_default_dtype(torch.float32)


def test_own_modes():
    """Whatever the caller is in, and the caller's again afterwards."""
    one = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16), torch.device("meta"), torch.inference_mode():
        with modes.own_modes(one.device) as theirs:
            assert theirs == ("cpu", torch.bfloat16)
            assert not torch.is_autocast_enabled("cpu")
            assert (one @ one).dtype == torch.float32
            assert not torch.is_grad_enabled()
            assert not torch.empty(1).is_inference()
            assert torch.empty(1).device.type == "cpu"
        assert (one @ one).dtype == torch.bfloat16
        assert torch.empty(1).is_meta
        assert torch.is_inference_mode_enabled()
    with modes.own_modes(one.device) as theirs:
        assert theirs is None


def test_a_write_of_one_number_is_another_model(calm):
    """Torch counts it; the few numbers that are read are others."""
    model = calm()
    weight = model.model.layers[0].mlp.up_proj.weight
    place = next(at for at in range(1, 99) if at % max(1, weight.numel() // modes._SAMPLE))
    before, numbers = modes.fingerprint(model), modes.sampled(weight.detach())
    with torch.no_grad():
        weight.view(-1)[place] += 1
    assert torch.equal(modes.sampled(weight.detach()), numbers)
    assert modes.fingerprint(model) != before
    with torch.inference_mode():
        made = calm()
        assert modes.fingerprint(made) == modes.fingerprint(made)  # such weights count no writes
