# SPDX-License-Identifier: Apache-2.0
"""Packed and compressed equals each user alone, compressed by hand (`oracle.py`)."""

import copy
import sys
from types import MethodType

import pytest
import torch

import patchrec_fast as pf
from patchrec_fast.hf import attach
from tests.hf.conftest import FAMILIES
from tests.hf.oracle import alone, assert_close, assert_same_step, packed, predicting

POLICIES = {"text": pf.Text(), "items": pf.ItemPatches(keep=2), "sessions": pf.SessionPatches(group=2)}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_equals_each_user_alone(make_model, pack, family, policy):
    """float32, logits and the gradient of every parameter within 1e-5 of float64."""
    model, batch = make_model(family), pack(POLICIES[policy])
    exact = alone(model, batch)
    attach(model)
    assert_same_step(packed(model, batch), exact, batch)


@pytest.mark.parametrize("attention", ["auto", "varlen", "masked", "sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_every_attention_by_name(make_model, pack, family, attention):
    model, batch = make_model(family), pack(POLICIES["sessions"])
    exact = alone(model, batch)
    handle = attach(model, attention=attention)
    names = {"auto": "patchrec_varlen", "varlen": "patchrec_varlen.varlen", "masked": "patchrec_varlen.masked"}
    assert handle.attention == model.config._attn_implementation == names.get(attention, attention)
    assert_same_step(packed(model, batch), exact, batch)


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_a_cache_is_refused_quietly(make_model, pack, attention):
    """With one, transformers' own masks take all users for one sequence."""
    model, batch = make_model("llama"), pack(POLICIES["sessions"], targets=False)
    exact = alone(model, batch)
    attach(model, attention=attention)
    out = model(**{**batch.model_inputs(), "use_cache": True})
    assert out.past_key_values is None
    assert_close(out.logits[0], exact.logits)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
def test_no_mask_of_rows_by_rows_is_made(make_model, pack, family, monkeypatch):
    """It would cost more than the attention: 8,000 rows make 64 million entries, several times over."""
    model, batch = make_model(family), pack(POLICIES["items"])
    attach(model)
    monkeypatch.setattr("transformers.masking_utils.sdpa_mask", None)
    assert model(batch).loss.isfinite()
    with pytest.raises(TypeError, match="not callable"):
        model(torch.tensor([[1, 2]]))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_without_targets_the_logits_of_all_rows(make_model, pack, family):
    model, batch = make_model(family), pack(POLICIES["items"], targets=False)
    exact = alone(model, batch)
    attach(model)
    with torch.inference_mode():
        out = model(batch)
    assert out.loss is None
    assert out.past_key_values is None
    assert_close(out.logits[0], exact.logits)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable.:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_with_gradient_checkpointing(make_model, pack, family, reentrant):
    model, batch = make_model(family), pack(POLICIES["sessions"])
    exact = alone(model, batch)
    attach(model)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    calls = []
    model.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    assert_same_step(packed(model, batch), exact, batch)
    assert len(calls) == 2  # recomputed


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma", "gemma2"])
def test_compiled_without_graph_breaks(make_model, pack, family):
    """The hook is one graph and the model with its loss another; other lengths do not compile them again."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    model = make_model(family)
    batches = [pack(POLICIES["sessions"], users=4), pack(POLICIES["sessions"], users=5, first=2)]
    batches += [pack(POLICIES["items"], users=6)]
    exact = [alone(model, batch) for batch in batches]
    attach(model)
    model.train()  # the rate of dropout, 0, is a number of the graph then
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    counts = []
    for batch, expected in zip(batches, exact, strict=True):
        assert_same_step(packed(model, batch, compiled), expected, batch)
        counts.append(counter.frame_count)
    assert counts[0] == counts[-1]


@pytest.mark.parametrize("family", ["llama", "gemma", "mistral"])
def test_bfloat16_rounds_no_more_than_users_alone(make_model, pack, family):
    """Against float64, the error's norm is at most 1.5 times that of bfloat16 users alone, whose rows and
    attention round in other places: both are sums of as many roundings, and differ by chance only."""
    model, batch = make_model(family).bfloat16(), pack(POLICIES["items"])
    exact, rounded = alone(model, batch), alone(model, batch, torch.bfloat16)
    attach(model)
    actual, rows = packed(model, batch), predicting(batch)
    own = (rounded.logits[rows].double() - exact.logits[rows]).norm()
    assert 0 < (actual.logits.double() - exact.logits[rows]).norm() <= 1.5 * own
    assert abs(actual.loss - exact.loss) <= 2.0**-8 * exact.loss
    for name, gradient in exact.gradients.items():
        own = (rounded.gradients[name].double() - gradient).norm()
        assert (actual.gradients[name].double() - gradient).norm() <= 1.5 * own + 2.0**-8 * gradient.norm(), name


def test_autocast(make_model, pack):
    """Qwen3's norms give float32 queries and bfloat16 values."""
    model, batch = make_model("qwen3"), pack(POLICIES["items"])
    exact = alone(model, batch)
    attach(model)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(batch)
    error = (out.logits[0].double() - exact.logits[predicting(batch)]).norm()
    assert error <= 0.05 * exact.logits[predicting(batch)].norm()  # about six roundings of 2^-8 a layer, two layers


class Calls(list):
    def __init__(self):
        self.plans = []

    def forget(self):
        """Those of the prompts that attach has tried."""
        self.clear()
        self.plans.clear()


@pytest.fixture
def spied(monkeypatch):
    """The weight argument of each call of compress, and in `.plans` the plan."""

    from patchrec_fast.hf import attach as _  # noqa: F401

    module = sys.modules["patchrec_fast.hf.attach"]
    seen, real = Calls(), module.compress

    def compress(ids, offsets, weight, **options):
        seen.append(weight)
        seen.plans.append(options.get("plan"))
        return real(ids, offsets, weight, **options)

    monkeypatch.setattr(module, "compress", compress)
    return seen


def test_a_plain_table_is_read_inside_the_embeddings_own_call(make_model, pack, spied):
    """Where FSDP2 and ZeRO-3 have gathered it: between the embedding's hooks."""
    model, batch, events = make_model("llama"), pack(POLICIES["items"]), []
    attach(model)
    spied.forget()
    embedding = model.get_input_embeddings()
    embedding.register_forward_pre_hook(lambda *_: events.append(len(spied)))
    model(batch)
    assert events == [0]
    assert spied == [embedding.weight]


def test_hooks_that_mark_the_output_keep_the_fused_path(make_model, pack, spied):
    """transformers' own, for checkpointing over frozen weights: it sees (1, R, d), no view (FSDP2 warns of one)."""
    model, batch, outputs = make_model("llama").requires_grad_(False), pack(POLICIES["items"]), []
    attach(model)
    spied.forget()
    model.enable_input_require_grads()
    model.model.layers[0].register_forward_pre_hook(lambda module, args: outputs.append(args[0]))
    model(batch)
    assert outputs[0].requires_grad
    assert outputs[0].shape == (1, len(batch.position_ids), 32)
    assert not outputs[0]._is_view()
    assert spied == [model.get_input_embeddings().weight]


def test_the_plan_reaches_compress(make_model, pack, sample, spied):
    items = sample.dataset.items[:6].tolist()
    packer = pf.Packer(sample.catalogue, sample.prompt, pf.SessionPatches(group=2), plan=True)
    batch = packer.pack([items, items[:3]], targets=[1, 2])
    model = make_model("llama")
    exact = alone(model, batch)
    attach(model)
    spied.forget()
    assert_same_step(packed(model, batch), exact, batch)
    (plan,) = spied.plans
    assert all(torch.equal(a, b) for a, b in zip(plan.tensors(), batch.plan.tensors(), strict=True))


def _square(module, args, output):
    return output**2


def wrap_scaled(model):
    return model


def wrap_hooked(model):
    model.get_input_embeddings().register_forward_hook(_square)
    return model


def wrap_replaced(model):
    embedding = model.get_input_embeddings()
    embedding.forward = MethodType(lambda self, ids: 3 * torch.nn.functional.embedding(ids, self.weight), embedding)
    return model


def wrap_padded(model):
    model.get_input_embeddings().padding_idx = 1  # end-of-turn is in every prompt; its row gets no gradient
    return model


WRAPPED = {
    "scaled": ("gemma", wrap_scaled),
    "hooked": ("llama", wrap_hooked),
    "replaced": ("llama", wrap_replaced),
    "padded": ("llama", wrap_padded),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_an_embedding_that_is_no_plain_table_is_called(make_model, pack, spied, kind):
    family, wrap = WRAPPED[kind]
    model, batch = wrap(make_model(family)), pack(POLICIES["sessions"])
    exact = alone(model, batch)
    attach(model)
    spied.forget()
    assert_same_step(packed(model, batch), exact, batch)
    assert spied == [model.get_input_embeddings()]


def test_a_replaced_embedding_is_used(make_model, pack):
    model, batch = make_model("llama"), pack(POLICIES["sessions"])
    attach(model)
    model.set_input_embeddings(torch.nn.Embedding(model.config.vocab_size, 32))
    plain = copy.deepcopy(model)
    assert_same_step(packed(model, batch), alone(plain, batch), batch)


def test_resized_after_attaching(make_model, pack):
    model, batch = make_model("llama", vocab_size=300), pack(POLICIES["sessions"])
    attach(model)
    with pytest.raises(ValueError, match="300 embeddings"):
        model(batch)
    model.resize_token_embeddings(batch.ids.max().item() + 1, mean_resizing=False)
    assert_same_step(packed(model, batch), alone(model, batch), batch)


def test_a_copy_of_an_attached_model_has_its_own_table(make_model, pack):
    model, batch = make_model("llama"), pack(POLICIES["sessions"])
    attach(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()
    assert_same_step(packed(other, batch), alone(other, batch), batch)
