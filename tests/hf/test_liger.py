# SPDX-License-Identifier: Apache-2.0
"""A model that Liger has patched keeps Liger's loss. Its kernels need a GPU: plain functions stand in for them."""

import functools

import pytest
import torch
from torch.nn import functional as F

import patchrec_fast as pf
from patchrec_fast.hf import attach
from tests.hf.oracle import alone, assert_same_step, packed

pytest.importorskip("liger_kernel")


@pytest.fixture
def patched(make_model, monkeypatch):
    """A Llama with Liger's forward, and the shapes that its fused loss was given."""
    from liger_kernel.transformers import apply_liger_kernel_to_llama, functional

    seen = []

    @functools.wraps(functional.liger_fused_linear_cross_entropy)
    def plain(hidden, weight, target, reduction="mean", ignore_index=-100, **options):
        assert options.get("softcap") is None
        seen.append((tuple(hidden.shape), tuple(target.shape)))
        return F.cross_entropy(hidden @ weight.T, target, reduction=reduction, ignore_index=ignore_index)

    monkeypatch.setattr(functional, "liger_fused_linear_cross_entropy", plain)
    model = make_model("llama")
    apply_liger_kernel_to_llama(rope=False, rms_norm=False, swiglu=False, model=model)
    return model, seen


@pytest.fixture
def batch(pack):
    return pack(pf.SessionPatches(group=2), users=3)


@pytest.mark.parametrize("first", ["liger", "attach"])
def test_its_fused_loss_gets_the_supervised_rows(make_model, batch, patched, monkeypatch, first):
    """Whichever comes first, and however large the call."""
    monkeypatch.setattr("patchrec_fast.hf.supervised.DENSE", 0)
    model, seen = patched
    exact = alone(make_model("llama"), batch)
    if first == "attach":
        liger = vars(model).pop("forward")
        handle = attach(model)
        model.forward = liger
    else:
        handle = attach(model)
    model.train()
    made = packed(model, batch)
    count = int((batch.labels != -100).sum())
    assert seen == [((count, 32), (count,))]
    assert made.logits is None
    assert_same_step(made, exact, batch)
    summed = model(batch, num_items_in_batch=torch.tensor(7)).loss
    torch.testing.assert_close(summed, made.loss * count / 7)
    handle.detach()
    assert model.forward.__func__.__module__.startswith("liger_kernel")


def test_its_evaluation_makes_logits(make_model, batch, patched):
    """Liger's forward fuses in training only; the supervised rows are all that it projects."""
    model, seen = patched
    exact = alone(make_model("llama"), batch)
    attach(model)
    assert_same_step(packed(model, batch), exact, batch)
    assert seen == []


def test_blocks_of_our_own_are_refused(patched):
    model, _ = patched
    with pytest.raises(RuntimeError, match="forward has been replaced"):
        attach(model, loss="chunked")
