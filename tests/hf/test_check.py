# SPDX-License-Identifier: Apache-2.0
"""What a model is, it shows: some classes of each kind, and what is refused is left as it was."""

import copy
import pickle
import warnings
from itertools import pairwise

import pytest
import torch

import patchrec_fast as pf
from patchrec_fast.hf import attach, check, positions
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
    sweep.randomise(model)
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
    packer = pf.Packer(sample.catalogue, sample.prompt, pf.Text(), share_prefix=share)
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


def test_a_prompt_longer_than_a_table_of_positions():
    made, model = sweep.packer(), sweep.build("GPT2LMHeadModel", n_positions=20)
    attach(model)
    with pytest.raises(ValueError, match=r"rows, and GPT2LMHeadModel has 20 positions; keep fewer items"):
        model(made.pack(sweep.HISTORIES))
