# SPDX-License-Identifier: Apache-2.0
"""What a model is, it shows: some classes of each kind, and what is refused is left as it was."""

import copy
import importlib
import pickle
import warnings
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

import patchrec_fast as pf
from patchrec_fast.hf import attach, check, positions
from patchrec_fast.ops.attention import Segments
from tests.hf import sweep

EXPECTED = {
    "StableLmForCausalLM": "right",  # layers that drop keyword arguments
    "NemotronForCausalLM": "right",
    "GPT2LMHeadModel": "right",  # no `layers`
    "OPTForCausalLM": "right",
    "Gemma3ForConditionalGeneration": "right",
    "MixtralForCausalLM": "right",
    "DiffLlamaForCausalLM": "training",  # its attention runs twice a layer
    "BartForCausalLM": "refused",  # counts positions
    "BloomForCausalLM": "refused",  # biases made of the mask
    "Gemma3nForCausalLM": "refused",  # reads input_ids
    "GptOssForCausalLM": "refused",  # sinks
    "RecurrentGemmaForCausalLM": "refused",
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_class_of_each_kind(name):
    verdict, says = sweep.judge(sweep.build(name))
    assert verdict == EXPECTED[name], says


def test_every_class_is_in_the_table():
    import transformers

    page = sweep.PAGE.read_text(encoding="utf-8")
    if f"transformers {transformers.__version__}," not in page:
        pytest.skip("docs/models.md is of another transformers; python -m tests.hf.sweep --write makes it")
    missing = [name for name in sweep.names() if f"| {name} |" not in page]
    assert not missing, "python -m tests.hf.sweep --write makes the table"
    assert "| wrong |" not in page
    assert "| crash |" not in page


@pytest.fixture
def unpassed(monkeypatch):
    monkeypatch.setattr(check, "_passed", set())


@pytest.mark.usefixtures("unpassed")
@pytest.mark.parametrize("name", ["BartForCausalLM", "GptOssForCausalLM"])
def test_a_refused_model_is_as_it_was(name):
    model = sweep.build(name).train()
    model.get_input_embeddings().eval()
    ids, generator = torch.tensor([[3, 9, 4]]), torch.get_rng_state()
    before = model.eval()(input_ids=ids).logits
    model.train()
    flags = [part.training for part in model.modules()]
    with pytest.raises(ValueError, match=rf"model: {name} does not read packed prompts as each alone: "):
        attach(model)
    assert torch.equal(torch.get_rng_state(), generator)
    assert [part.training for part in model.modules()] == flags
    assert all(part.grad is None for part in model.parameters())
    assert not any(part._forward_pre_hooks or "forward" in vars(part) for part in model.modules())
    assert torch.equal(model.eval()(input_ids=ids).logits, before)


@pytest.mark.usefixtures("unpassed")
@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_a_layer_that_mixes_prompts(make_model, attention):
    """A patched instance: no class and no configuration says so."""
    model = make_model("llama")
    mlp = model.model.layers[0].mlp
    mlp.forward = lambda x: type(mlp).forward(mlp, x + 0.3 * x.cumsum(1))
    with pytest.raises(ValueError, match="depend on the prompt before it"):
        attach(model, attention=attention)


@pytest.mark.usefixtures("unpassed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("amount", [2**-4, 2**-9])
def test_little_that_is_mixed(make_model, dtype, amount):
    """Less than low precision rounds: replacing the first prompt changes nothing else."""
    model = make_model("llama").to(dtype)
    mlp = model.model.layers[1].mlp
    mlp.forward = lambda x: type(mlp).forward(mlp, x) + amount * F.pad(x, (0, 0, 1, 0))[:, :-1]
    with pytest.raises(ValueError, match="depend on the prompt before it"):
        attach(model)


@pytest.mark.usefixtures("unpassed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["JambaForCausalLM", "RecurrentGemmaForCausalLM", "Lfm2ForCausalLM"])
def test_fresh_weights_that_mix(name, dtype, monkeypatch):
    """As transformers initialises them, and without their names of layers, by which they are refused before."""
    monkeypatch.setattr(sweep, "randomise", lambda model: model.eval())
    model = sweep.build(name).to(dtype)
    monkeypatch.setattr(importlib.import_module("patchrec_fast.hf.attach"), "_LAYERS", _All())
    with pytest.raises(ValueError, match="depend on the prompt before it"):
        attach(model)


class _All(set):
    def __rsub__(self, others):
        return set()


@pytest.mark.usefixtures("unpassed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_round_otherwise_in_other_groups(dtype):
    """A prompt's logits may change with another's tokens there, by rounding."""
    for seed in range(3):
        torch.manual_seed(seed)
        model = sweep.build("Qwen3MoeForCausalLM", num_experts=3 + seed).to(dtype)
        attach(model)


def _alone(segments):
    """Each segment by itself, as its rows' bounds say."""


def _all_of_the_parent(segments):
    rows = segments.cu_seqlens.diff()
    visible = torch.where(segments.parent < 0, 0, rows[segments.parent.clamp(min=0)])
    return Segments(segments.cu_seqlens, segments.parent, visible, segments.position_ids)


def _misled(attention, change, effect):
    """Attention that is told of other segments, and has an effect as small as one likes."""
    attention.o_proj.weight.data.mul_(effect)

    def forward(*args, segments=None, attention_mask=None, **kwargs):
        changed = None if segments is None else change(segments)
        given = {} if changed is None else {"segments": changed}
        mask = attention_mask if segments is None else None  # it carries them too
        return type(attention).forward(attention, *args, attention_mask=mask, **kwargs, **given)

    attention.forward = forward


@pytest.mark.usefixtures("unpassed")
@pytest.mark.parametrize(("dtype", "effect"), [(torch.float32, 2.0**-14), (torch.bfloat16, 2.0**-9)])
@pytest.mark.parametrize(
    ("change", "wrong"), [(_alone, "do not depend on the rows that it shares"), (_all_of_the_parent, "depend on rows")]
)
@pytest.mark.parametrize("large", [True, False])
def test_attention_that_misreads_a_tree(make_model, dtype, effect, change, wrong, large):
    """It reads packed prompts right, so only a tree tells; and less than rounding, so only replaced rows tell."""
    model = make_model("llama").to(dtype)
    for layer in model.model.layers:
        _misled(layer.self_attn, change, 1.0 if large else effect)
    wrong = f"{wrong}|not those of each alone" if large else wrong
    with pytest.raises(ValueError, match=f"as each alone: of prompts that share rows, .*({wrong})"):
        attach(model)
    attach(model, attention="sdpa")  # such a batch is an error there


@pytest.mark.usefixtures("unpassed")
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_attention_without_effect_is_no_error(make_model, family):
    """As fresh models have it whose last projections begin at zero."""
    model = make_model(family)
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    attach(model)


@pytest.mark.usefixtures("unpassed")
def test_a_second_table_of_ids_whose_weights_are_zero(make_model):
    model = make_model("llama")
    decoder, table = model.model, torch.nn.Embedding(model.config.vocab_size, model.config.hidden_size)
    torch.nn.init.zeros_(table.weight)

    def add(module, args, kwargs):
        if kwargs.get("input_ids") is None:
            return None
        ids = kwargs.pop("input_ids")
        return args, {**kwargs, "inputs_embeds": module.embed_tokens(ids) + table(ids)}

    decoder.register_forward_pre_hook(add, with_kwargs=True)
    with pytest.raises(ValueError, match="reads input_ids besides their embeddings"):
        attach(model)


@pytest.mark.usefixtures("unpassed")
@pytest.mark.parametrize("accepted", [True, False])
def test_the_check_leaves_no_trace(make_model, accepted):
    model = make_model("llama").train()
    model.model.layers[1].eval()
    for part in model.parameters():
        part.grad = torch.ones_like(part)
    if not accepted:
        mlp = model.model.layers[0].mlp
        mlp.forward = lambda x: type(mlp).forward(mlp, x + 0.3 * x.cumsum(1))
    flags, generator = [part.training for part in model.modules()], torch.get_rng_state()
    attention, hooks = model.config._attn_implementation, [len(part._forward_pre_hooks) for part in model.modules()]
    stance = torch._dynamo.eval_frame._stance.stance
    with nullcontext() if accepted else pytest.raises(ValueError, match="depend on the prompt before it"):
        attach(model).detach()
    assert [part.training for part in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(part.grad, torch.ones_like(part)) for part in model.parameters())
    assert all(part.requires_grad for part in model.parameters())
    assert model.config._attn_implementation == attention
    assert [len(part._forward_pre_hooks) for part in model.modules()] == hooks
    assert not any(part._forward_hooks for part in model.modules())
    assert torch.is_grad_enabled()
    assert torch._dynamo.eval_frame._stance.stance == stance
    assert not check.checking.get()


@pytest.mark.usefixtures("unpassed")
def test_a_window_that_only_the_mask_has(make_model):
    """It is longer than the prompts of the check."""
    model = make_model("qwen2", sliding_window=100)
    model.model.layers[0].self_attn.sliding_window = None
    with pytest.raises(ValueError, match="rows see 100 rows by its mask, and tells its attention of None"):
        attach(model)


@pytest.mark.usefixtures("unpassed")
def test_once_for_a_class_and_configuration(make_model, monkeypatch):
    calls = []
    monkeypatch.setattr(check, "alone", lambda *args, made=check.alone: calls.append(1) or made(*args))
    for _ in range(2):
        attach(make_model("llama")).detach()
    assert len(calls) == 1
    attach(make_model("llama", rope_theta=100.0))
    attach(make_model("llama").bfloat16())
    assert len(calls) == 3


@pytest.mark.usefixtures("unpassed")
def test_a_model_whose_weights_come_later(make_model, pack):
    with torch.device("meta"):
        model = make_model("llama")
    attach(model)
    model.to_empty(device="cpu")
    real = sweep.randomise(make_model("llama"))
    model.load_state_dict(real.state_dict())
    for name, buffer in real.named_buffers():  # in no state-dict
        model.get_buffer(name).copy_(buffer)
    mlp = model.model.layers[0].mlp
    mlp.forward = lambda x: type(mlp).forward(mlp, x + 0.3 * x.cumsum(1))
    with pytest.raises(ValueError, match="depend on the prompt before it"):
        model(pack(pf.Text(), users=2))


def test_an_attached_model_says_detach_when_it_is_pickled(make_model, pack):
    model, batch = make_model("llama"), pack(pf.Text(), users=2)
    handle = attach(model)
    loss = model(batch).loss
    with pytest.raises(TypeError, match=r"detach\(\) it first"):
        pickle.dumps(model)
    assert torch.equal(copy.deepcopy(model)(batch).loss, loss)
    handle.detach()
    again = pickle.loads(pickle.dumps(model))
    attach(again)
    assert torch.equal(again(batch).loss, loss)


def test_experts_are_balanced_over_all_rows():
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    model = sweep.build("MixtralForCausalLM")
    model.config.output_router_logits, model.router_aux_loss_coef = True, 0.5
    made = sweep.packer()
    batch = made.pack(sweep.HISTORIES, sweep.TARGETS)
    bounds = batch.cu_seqlens.tolist()
    parts = [model(input_ids=batch.ids[None, a:b].long()).router_logits for a, b in pairwise(bounds)]
    routers = tuple(torch.cat(layer) for layer in zip(*parts, strict=True))
    balance = load_balancing_loss_func(routers, model.num_experts, model.num_experts_per_tok)
    model.config.output_router_logits = False
    plain = sweep.plain(model, batch, made)[0]
    model.config.output_router_logits = True
    attach(model)
    torch.testing.assert_close(model(batch).loss, plain + 0.5 * balance, rtol=1e-4, atol=0)


@pytest.mark.parametrize("share", [False, True])
def test_a_prompt_longer_than_the_model(make_model, sample, share, monkeypatch):
    monkeypatch.setattr(positions, "_warned", set())
    packer = pf.Packer(sample.catalogue, sample.prompt, pf.Text(), share=share)
    histories = [sample.dataset.items[:9], sample.dataset.items[9:11]]
    batch = packer.pack(histories)
    rows = max(len(each) for each in batch.prompts(batch.position_ids))
    fits, short = (
        make_model("llama", max_position_embeddings=rows),
        make_model("llama", max_position_embeddings=rows - 1),
    )
    attach(fits)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fits(batch)
    attach(short)
    with pytest.warns(UserWarning, match=f"{rows} rows.*{rows - 1} positions"):
        short(batch)


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"rope_type": "default"}, 100),
        ({"rope_type": "dynamic", "factor": 2.0}, 200),
        ({"rope_type": "linear", "factor": 2.0}, 100),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 50}, 200),
    ],
    ids=lambda value: str(value),
)
def test_how_many_positions_a_model_has(make_model, rope, limit, monkeypatch):
    """Rotary embeddings that are stretched reach further than `max_position_embeddings` says."""
    monkeypatch.setattr(positions, "_warned", set())
    model = make_model("llama", max_position_embeddings=100, rope_parameters={"rope_theta": 10000.0, **rope})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        positions.check_length(model, limit)
    with pytest.warns(UserWarning, match=f"{limit + 1} rows.*{limit} positions"):
        positions.check_length(model, limit + 1)


def test_a_prompt_longer_than_a_table_of_positions():
    made, model = sweep.packer(), sweep.build("GPT2LMHeadModel", n_positions=20)
    attach(model)
    with pytest.raises(ValueError, match=r"rows, and GPT2LMHeadModel has 20 positions; keep fewer items"):
        model(made.pack(sweep.HISTORIES))
