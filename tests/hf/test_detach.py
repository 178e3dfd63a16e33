# SPDX-License-Identifier: Apache-2.0
"""What attaching leaves alone: ordinary calls, generate, state dicts; and that detaching gives all of it back."""

import contextlib
import json

import pytest
import torch

import patchrec_fast as pf
from patchrec_fast.hf import attach
from patchrec_fast.hf.attention import attend
from tests.hf.conftest import FAMILIES


def snapshot(model):
    """Everything of the model that attaching touches, and its parameters' bits."""
    modules = [
        (name, type(module), sorted(vars(module)), [len(hooks) for hooks in _hooks(module)])
        for name, module in model.named_modules()
    ]
    configs = json.dumps(model.config.to_dict(), default=str, sort_keys=True)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return modules, configs, model.config._attn_implementation_internal, state


def _hooks(module):
    return [value for name, value in sorted(vars(module).items()) if "hooks" in name and hasattr(value, "__len__")]


def assert_equal(before, after):
    assert before[:3] == after[:3]
    assert list(before[3]) == list(after[3])
    assert all(torch.equal(a, b) for a, b in zip(before[3].values(), after[3].values(), strict=True))


@pytest.mark.parametrize("attention", ["auto", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_detach_restores_the_model(make_model, pack, family, attention):
    model, batch = make_model(family), pack(pf.SessionPatches(group=2))
    ids = torch.arange(20).view(2, 10)
    before, logits = snapshot(model), model(ids).logits
    handle = attach(model, attention=attention)
    assert list(model.state_dict()) == list(before[3])
    model(batch)
    handle.detach()
    assert_equal(before, snapshot(model))
    assert torch.equal(model(ids).logits, logits)
    with pytest.raises(ValueError, match="input_ids or inputs_embeds"):
        model(**batch.model_inputs())
    handle.detach()  # again does nothing
    attach(model).detach()  # and it can be attached again
    assert_equal(before, snapshot(model))


def test_detach_leaves_others_hooks(make_model):
    model, calls = make_model("llama"), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    handle = attach(model)
    model.get_input_embeddings().register_forward_hook(lambda *_: calls.append(2))
    handle.detach()
    model(torch.tensor([[1, 2]]))
    assert calls == [1, 2]


def test_nothing_is_changed_where_attaching_fails(make_model):
    model = make_model("gemma2")
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="does not cap logits"):
        attach(model, attention="varlen")
    with pytest.raises(ValueError, match="attention must be"):
        attach(model, attention="fastest")
    assert_equal(before, snapshot(model))


def test_nothing_is_changed_where_the_last_step_fails(make_model, monkeypatch):
    model = make_model("llama")
    before = snapshot(model)
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "register_forward_pre_hook", None)
        with pytest.raises(TypeError):
            attach(model)
    assert_equal(before, snapshot(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_ordinary_calls_are_as_before(make_model, family):
    """No mask, no packing; with a cache, which a second call continues."""
    model = make_model(family)
    ids = torch.randint(3, 800, (2, 12), generator=torch.Generator().manual_seed(0))
    before = model(ids).logits
    attach(model)
    torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=1e-5 if family == "gemma2" else 0)
    begun = model(ids[:, :9], use_cache=True)
    ended = model(ids[:, 9:], past_key_values=begun.past_key_values)
    torch.testing.assert_close(torch.cat([begun.logits, ended.logits], 1), before, rtol=0, atol=1e-5)


@pytest.fixture
def padded():
    """Two sequences of 9 and 4 tokens, padded on either side: ids and mask (2, 9)."""
    ids = torch.randint(3, 800, (2, 9), generator=torch.Generator().manual_seed(0))
    left, right = torch.ones(2, 9, dtype=torch.long), torch.ones(2, 9, dtype=torch.long)
    left[1, :5], right[1, 4:] = 0, 0
    return ids, {"left": left, "right": right}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padded_batches_are_as_before(make_model, padded, family, side):
    """Bit for bit where the model ran on sdpa before; Gemma 2 ran on eager, whose roundings differ."""
    model, (ids, masks) = make_model(family), padded
    mask = masks[side]
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    before = model(**inputs)
    assert (model.config._attn_implementation == "eager") == (family == "gemma2")
    attach(model)
    after = model(**inputs)
    real = mask.bool()
    if family == "gemma2":
        torch.testing.assert_close(after.logits[real], before.logits[real], rtol=0, atol=1e-5)
        torch.testing.assert_close(after.loss, before.loss, rtol=1e-6, atol=0)
    else:
        assert torch.equal(after.logits[real], before.logits[real])
        assert torch.equal(after.loss, before.loss)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_generate_is_as_before(make_model, padded, family, beams):
    """With left padding, a cache, and windows shorter than the text."""
    model, (ids, masks) = make_model(family), padded
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "num_beams": beams, "do_sample": False, "pad_token_id": 2}
    before = model.generate(ids, attention_mask=masks["left"], **options)
    attach(model)
    assert torch.equal(model.generate(ids, attention_mask=masks["left"], **options), before)


def test_saved_checkpoints_do_not_name_our_attention(make_model, tmp_path):
    model = make_model("llama")
    attach(model)
    model.save_pretrained(tmp_path)
    assert "patchrec" not in (tmp_path / "config.json").read_text()
    type(model).from_pretrained(tmp_path)


def test_continuous_batching_stays_sdpas(monkeypatch):
    """transformers' scheduler gives cu_seq_lens_q with a paged cache, which only its own functions update."""
    seen = {}
    target = "transformers.integrations.sdpa_attention.sdpa_attention_forward"
    monkeypatch.setattr(target, lambda *args, **options: seen.update(options) or (args[1], None))
    cache = object()
    x = torch.ones(1, 2, 5, 8)
    attend(torch.nn.Identity(), x, x, x, None, cu_seq_lens_q=torch.tensor([0, 5]), max_length_q=5, cache=cache)
    assert seen["cache"] is cache


def test_a_block_detaches_at_its_end(make_model):
    """Also where it raises, and where it has detached by itself."""
    model = make_model("llama")
    before = snapshot(model)
    for fails in (False, True):
        with contextlib.suppress(ZeroDivisionError), pf.attach(model) as handle:
            assert handle.model is model
            assert model._forward_pre_hooks
            if fails:
                raise ZeroDivisionError
        assert_equal(before, snapshot(model))
    with pf.attach(model) as handle:
        handle.detach()
    assert_equal(before, snapshot(model))
