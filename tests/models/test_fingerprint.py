# SPDX-License-Identifier: Apache-2.0
"""What changes a fingerprint, what does not, and weights that cannot be read as bytes."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

import patchrec_fast as pf
from patchrec_fast import data
from patchrec_fast.models import fingerprint

transformers = pytest.importorskip("transformers")


def llama(**options):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=32, **{**sizes, **options})).eval()


def test_a_model_is_itself_wherever_it_comes_from(tmp_path):
    model = llama()
    before = fingerprint.of_model(model)
    assert json.loads(json.dumps(before)) == before
    assert before["weights_read"] == "all"
    model.save_pretrained(tmp_path / "one")
    attachment = pf.attach(model, "varlen")
    assert fingerprint.of_model(model) == before
    attachment.detach()
    for attention in ("eager", "sdpa"):
        loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "one", attn_implementation=attention)
        assert fingerprint.of_model(loaded) == before


@pytest.mark.parametrize("name", ["rms_norm_eps", "hidden_act", "rope_parameters", "num_key_value_heads"])
def test_every_key_of_a_configuration_counts(name):
    model = llama()
    before = fingerprint.of_model(model)
    changed = {"rms_norm_eps": 1.0, "hidden_act": "relu", "num_key_value_heads": 1}.get(name)
    if changed is None:
        changed = {**model.config.rope_parameters, "rope_theta": 3.0}
    setattr(model.config, name, changed)
    [words] = fingerprint.differences(before, fingerprint.of_model(model))
    assert words.startswith(f"the configuration: {name}")


def test_a_sub_configuration_counts():
    config = transformers.Gemma3Config(
        text_config={"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 32},
        vision_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    )
    model = nn.Linear(1, 1)
    model.config = config
    before = fingerprint.of_model(model)
    config.text_config.rms_norm_eps = 0.5
    [words] = fingerprint.differences(before, fingerprint.of_model(model))
    assert words.startswith("the configuration: text_config: rms_norm_eps")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.complex64])
def test_every_bit_of_every_dtype_counts(dtype):
    model = nn.Module()
    model.register_buffer("table", torch.zeros(3, 5).to(dtype))
    model.register_buffer("one", torch.tensor(1.0))
    before = fingerprint.of_model(model)
    assert before["weights_read"] == "all"
    model.table.view(torch.uint8).view(-1)[-1] = 1
    assert fingerprint.differences(before, fingerprint.of_model(model)) == ["the weights"]


class Halves(torch.Tensor):
    """A tensor made of two, as quantised ones are, which refuses every operator."""

    @staticmethod
    def __new__(cls, one, other):
        return torch.Tensor._make_wrapper_subclass(cls, one.shape, dtype=torch.float32)

    def __init__(self, one, other):
        self.one, self.other = one, other

    def __tensor_flatten__(self):
        return ["one", "other"], None

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError(f"{function} is not implemented for Halves")


@pytest.mark.parametrize(
    ("tensor", "read"),
    [
        (torch.eye(3).to_sparse(), "all"),
        (torch.eye(4).to_sparse_csr(), "all"),
        (torch.eye(4).to_sparse_csc(), "all"),
        (torch.eye(3).T, "all"),
        (torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8), "all"),
        (Halves(torch.ones(2), torch.zeros(2, dtype=torch.int8)), "all"),
        (torch.ones(2, device="meta"), "only name, dtype and shape of 1 of 1"),
    ],
    ids=["coo", "csr", "csc", "strided", "quantised", "subclass", "meta"],
)
def test_tensors_of_every_kind(tensor, read):
    model = nn.Module()
    model.register_buffer("x", tensor)
    assert fingerprint.of_model(model)["weights_read"] == read
    assert fingerprint.of_model(model) == fingerprint.of_model(model)


def test_what_a_subclass_is_made_of_counts():
    def of(value):
        model = nn.Module()
        model.register_buffer("x", Halves(torch.ones(2), torch.full((2,), value)))
        return fingerprint.of_model(model)["weights"]

    assert of(1.0) == of(1.0) != of(2.0)


def test_weights_that_accelerate_keeps_elsewhere(tmp_path):
    pytest.importorskip("accelerate")
    llama().save_pretrained(tmp_path / "model")
    parts = ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"]
    places = {**dict.fromkeys(parts, "cpu"), "model.layers": "disk"}
    offloaded = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "offload"
    )
    assert any(parameter.is_meta for parameter in offloaded.parameters())
    ids = torch.tensor([[1, 2, 3]])
    logits = offloaded(ids).logits
    assert fingerprint.of_model(offloaded) == fingerprint.of_model(llama())
    assert torch.equal(offloaded(ids).logits, logits)  # left as it was
    assert any(parameter.is_meta for parameter in offloaded.parameters())


def test_adapters_count():
    peft = pytest.importorskip("peft")

    def adapted(**options):
        torch.manual_seed(0)
        return peft.get_peft_model(llama(), peft.LoraConfig(r=2, target_modules=["q_proj"], **options))

    before = fingerprint.of_model(adapted(lora_alpha=4))
    assert fingerprint.of_model(adapted(lora_alpha=4)) == before
    words = fingerprint.differences(before, fingerprint.of_model(adapted(lora_alpha=8)))
    assert words == ["the adapters: default: lora_alpha 4 and not 8", "the adapters: layers"]
    model = adapted(lora_alpha=4)
    with model.disable_adapter():
        assert fingerprint.differences(before, fingerprint.of_model(model)) == ["the adapters: layers"]


def test_every_field_of_a_dataset_counts(sample):
    before = fingerprint.of_dataset(sample)
    assert fingerprint.of_dataset(copy.deepcopy(sample)) == before
    own = data.Ids(sample.titles, (f"item {number}" for number in sample.titles))
    assert fingerprint.of_dataset(dataclasses.replace(sample, item_ids=own)) == before
    titles = {**sample.titles, 3: "Another \udcff"}
    splits = {**sample.splits, "val": sample.splits["val"][::-1]}
    for name, value in {
        "items": sample.items[::-1],
        "offsets": sample.offsets + 1,
        "titles": titles,
        "splits": splits,
    }.items():
        changed = copy.copy(sample)
        object.__setattr__(changed, name, value)  # one field alone, which need not make a data set
        other = fingerprint.of_dataset(changed)
        assert fingerprint.differences({"data": before}, {"data": other}) == [f"the data: {name}"]


def test_prompts_count(packer):
    before = fingerprint.of_packer(packer)
    other = pf.Packer(packer.catalogue, packer.prompt, pf.SessionPatches(4), 50)
    assert fingerprint.differences(before, fingerprint.of_packer(other)) == ["the policy: group 5 and not 4"]
    other = copy.copy(packer)
    other.prompt = copy.copy(packer.prompt)
    other.prompt.suffix = packer.prompt.suffix[1:]
    assert fingerprint.differences(before, fingerprint.of_packer(other)) == ["the prompt"]


def test_options_as_json():
    class Own:
        pass

    assert fingerprint.plain(Own()) == fingerprint.plain(Own())  # their addresses differ
    given = {"a": (1, np.int64(2)), "b": float("nan"), "c": pf.ItemPatches(2), "d": torch.float16, "e": {3, 1}}
    plain = fingerprint.plain(given)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    long = np.zeros(10_000)
    assert fingerprint.plain(long) != fingerprint.plain(np.where(np.arange(10_000) == 5000, 1.0, long))


def test_own_ids_are_not_what_a_run_begins_with():
    """Data of one content are one, whatever made them and whoever named their items."""
    one, other = (data.generate(users=5, items=30) for _ in range(2))
    assert fingerprint.of_dataset(one) == fingerprint.of_dataset(other)
    named = dataclasses.replace(one, item_ids=data.Ids(one.titles, [f"sku-{item}" for item in one.titles]))
    assert fingerprint.of_dataset(named) == fingerprint.of_dataset(one)
