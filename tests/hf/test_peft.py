# SPDX-License-Identifier: Apache-2.0
"""PEFT's wrappers: attached around them, a step equals the same PEFT model on each user alone (`oracle.py`)."""

import pytest
import torch

import patchrec_fast as pf
from patchrec_fast.hf import attach
from tests.hf.oracle import alone, assert_close, assert_same_step, packed

peft = pytest.importorskip("peft")

PROJECTIONS = ["q_proj", "v_proj", "down_proj"]
NEW = [2, 3, 4]  # the marks of a prompt are among a tokenizer's last tokens; any will do
CONFIGS = {
    "linear": {"target_modules": PROJECTIONS},
    "dora": {"target_modules": PROJECTIONS, "use_dora": True},
    "embedding": {"target_modules": [*PROJECTIONS, "embed_tokens"]},
    "head": {"target_modules": [*PROJECTIONS, "lm_head"]},
    "saved": {"target_modules": PROJECTIONS, "modules_to_save": ["embed_tokens", "lm_head"]},
    "tokens": {"target_modules": PROJECTIONS, "trainable_token_indices": NEW},
}


@pytest.fixture
def wrap(make_model):
    """wrap(kind, family): a PEFT model whose adapters are not the identity they start as."""

    def build(kind, family="llama"):
        model = peft.get_peft_model(make_model(family), peft.LoraConfig(r=4, lora_alpha=8, **CONFIGS[kind]))
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
        return model.eval()

    return build


@pytest.fixture
def batch(pack):
    return pack(pf.SessionPatches(group=2), users=3)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_step_equals_each_user_alone(wrap, batch, kind):
    model = wrap(kind)
    exact = alone(model, batch)
    attach(model)
    assert_same_step(packed(model, batch), exact, batch)


@pytest.mark.parametrize("kind", ["embedding", "tokens"])
def test_tied_to_the_head(wrap, batch, kind):
    """PEFT adapts the one side, or wraps both."""
    model = wrap(kind, "llama-tied")
    exact = alone(model, batch)
    attach(model)
    assert_same_step(packed(model, batch), exact, batch)


@pytest.mark.parametrize("kind", ["linear", "dora", "embedding"])
def test_without_logits(wrap, batch, kind, monkeypatch):
    """The head is frozen and plain: no gradient of its weight is made."""
    monkeypatch.setattr("patchrec_fast.ops.cross_entropy.BLOCK", 1000)
    monkeypatch.setattr("patchrec_fast.ops.cross_entropy.WORDS", 1)
    model = wrap(kind)
    exact = alone(model, batch)
    handle = attach(model, loss="chunked")
    made = packed(model, batch)
    assert made.logits is None
    assert_same_step(made, exact, batch)
    handle.detach()
    assert "forward" not in vars(model.get_base_model()) | vars(model.get_base_model().lm_head)


@pytest.mark.parametrize(
    ("kind", "family", "wrapper"),
    [
        ("head", "llama", "Linear"),
        ("saved", "llama", "ModulesToSaveWrapper"),
        ("tokens", "llama-tied", "TrainableTokens"),
    ],
)
def test_an_adapted_head_makes_its_logits(wrap, batch, kind, family, wrapper, monkeypatch):
    monkeypatch.setattr("patchrec_fast.hf.supervised.DENSE", 0)
    model = wrap(kind, family)
    with pytest.raises(RuntimeError, match=rf"its head is no plain linear layer but peft\..*{wrapper}"):
        attach(model, loss="chunked")
    attach(model)
    assert model(batch).logits is not None


@pytest.mark.parametrize("kind", CONFIGS)
def test_training_changes_what_it_should_and_saves_it(wrap, make_model, batch, tmp_path, kind):
    """The adapter's files, on the base model again, give the loss that was reached."""
    model = wrap(kind).train()
    attach(model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW([part for part in model.parameters() if part.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
    reached = model(batch).loss.detach()
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(make_model("llama"), tmp_path)
    attach(again)
    torch.testing.assert_close(again(batch).loss.detach(), reached, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["linear", "embedding", "head"])
def test_merged_into_the_weights(wrap, batch, kind):
    """Once detached: the merged model is transformers' own again, and can be attached."""
    model = wrap(kind)
    handle = attach(model)
    with torch.no_grad():
        before = model(batch)
        handle.detach()
        merged = model.merge_and_unload()
        assert not any("forward" in vars(module) for module in merged.modules())
        attach(merged, loss="dense")
        after = merged(batch)
    assert_close(after.logits, before.logits.double(), 1e-5)
    torch.testing.assert_close(after.loss, before.loss, rtol=1e-5, atol=0)


def test_two_adapters(wrap, batch):
    model = wrap("linear")
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["embed_tokens"]))
    attach(model)
    first = model(batch).loss
    model.set_adapter("other")
    torch.nn.init.normal_(model.get_input_embeddings().lora_embedding_B["other"])
    assert_same_step(packed(model, batch), alone(model, batch), batch)
    model.set_adapter("default")
    assert torch.equal(model(batch).loss, first)


@pytest.mark.parametrize("method", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_virtual_tokens_are_refused(make_model, method):
    config = getattr(peft, method)(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(ValueError, match="PEFT would prompt the first user only"):
        attach(peft.get_peft_model(make_model("llama"), config))
