# SPDX-License-Identifier: Apache-2.0
"""Bad input: each a clear error."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import patchrec_fast as pf
from patchrec_fast.hf import attach
from patchrec_fast.hf.attention import attend
from patchrec_fast.layout.rows import without


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_a_batch_for_another_vocabulary(make_model, pack, family):
    model, batch = make_model(family, vocab_size=100), pack(pf.Text())
    attach(model)
    with pytest.raises(ValueError, match=rf"below the model's 100 .*, got {int(batch.ids.max())}.*resize_token"):
        model(batch)


def test_no_model():
    for thing in (torch.nn.Linear(2, 2), "llama", None):
        with pytest.raises(TypeError, match=f"causal language model, got {type(thing).__name__}"):
            attach(thing)


def test_a_model_without_input_embeddings(make_model):
    model = make_model("llama")
    model.model.embed_tokens = None
    with pytest.raises(TypeError, match="LlamaForCausalLM has no input embeddings"):
        attach(model)


def test_attached_twice(make_model):
    model = make_model("llama")
    attach(model)
    with pytest.raises(ValueError, match="attached already; detach"):
        attach(model)


def test_data_parallel(make_model, pack):
    model = make_model("llama")
    with pytest.raises(ValueError, match="use DistributedDataParallel"):
        attach(torch.nn.DataParallel(model))
    attach(model)
    replica = model._replicate_for_data_parallel()  # what DataParallel calls, on each of several GPUs
    with pytest.raises(ValueError, match="use DistributedDataParallel"):
        replica(**pack(pf.Text()).model_inputs())


def test_a_wrapper(make_model):
    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    with pytest.raises(TypeError, match="got Wrapper; attach to the model itself before wrapping"):
        attach(Wrapper(make_model("llama")))


@pytest.mark.parametrize(
    ("attention", "error", "message"),
    [
        (
            "fastest",
            ValueError,
            "attention must be 'auto', 'varlen', 'fa2', 'flex', 'masked' or a name .* got 'fastest'",
        ),
        ("fa2", RuntimeError, "cannot serve this model: it runs on CUDA tensors, got a tensor on cpu"),
        ("flash_attention_2", ImportError, "flash_attn|install"),
        (None, TypeError, "attention must be a name, got NoneType"),
    ],
)
def test_attention_that_is_not_available(make_model, attention, error, message):
    model = make_model("llama")
    before = model.config._attn_implementation
    with pytest.raises(error, match=message):
        attach(model, attention=attention)
    assert model.config._attn_implementation == before
    assert not model._forward_pre_hooks


def test_a_kernel_asked_for_by_name_is_not_replaced(make_model, pack):
    model = make_model("llama", attention_dropout=0.1)
    attach(model, attention="varlen")
    model.train()
    with pytest.raises(RuntimeError, match="attention='varlen' cannot serve this call: it has no dropout"):
        model(pack(pf.Text()))


def test_layers_that_would_mix_sequences(make_model):
    model = make_model("llama")
    model.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(ValueError, match="layers of type linear_attention, which would mix"):
        attach(model)


def test_an_encoder_decoder():
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 8, "d_ff": 8, "d_kv": 4, "num_layers": 1, "num_heads": 2, "vocab_size": 9}
    with pytest.raises(ValueError, match="encoder-decoder"):
        attach(T5ForConditionalGeneration(T5Config(**sizes)))


CLASHES = {
    "input_ids": torch.ones(1, 3, dtype=torch.long),
    "inputs_embeds": torch.ones(1, 3, 32),
    "attention_mask": torch.ones(1, 3),
    "past_key_values": object(),
}


@pytest.mark.parametrize("name", CLASHES)
def test_what_a_packed_call_comes_without(make_model, pack, name):
    model = make_model("llama")
    attach(model)
    with pytest.raises(ValueError, match=f"a packed batch comes without {name}"):
        model(**pack(pf.Text()).model_inputs(), **{name: CLASHES[name]})
    with pytest.raises(ValueError, match="without a positional argument"):
        model(torch.ones(1, 3), **pack(pf.Text()).model_inputs())


def attend_to(query=(1, 2, 5, 8), keys=5, causal=True, **options):
    shape = (query[0], query[1], keys, query[3])
    module = SimpleNamespace(is_causal=causal)
    bounds = torch.tensor([0, 5])
    return attend(
        module,
        torch.ones(query),
        torch.ones(shape),
        torch.ones(shape),
        None,
        cu_seq_lens_q=bounds,
        max_length_q=5,
        **options,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query": (2, 2, 5, 8)}, "one batch row and no cache"),
        ({"keys": 9}, "one batch row and no cache"),
        ({"causal": False}, "not causal"),
        ({"s_aux": torch.ones(2)}, "attention sinks"),
        ({"position_bias": torch.ones(1, 2, 5, 5)}, "position bias"),
    ],
)
def test_attention_that_is_not_computed(options, message):
    assert attend_to()[0].shape == (1, 5, 2, 8)
    with pytest.raises(ValueError, match=message):
        attend_to(**options)


def test_importing_does_not_import_transformers():
    code = "import sys, patchrec_fast.hf; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_prompts_whose_first_rows_are_absent(make_model, sample, device):
    """Only `Recommender` has kept them; elsewhere they would not be seen."""
    packer = pf.Packer(sample.catalogue, sample.prompt, pf.Text())
    batch = packer.pack([sample.dataset.items[:3], sample.dataset.items[3:5], sample.dataset.items[5:6]])
    model = make_model("llama")
    attach(model)
    model(without(batch, [0, 0, 0]))
    with pytest.raises(ValueError, match=r"7 rows of the packed batch's prompts are not in it"):
        model(without(batch, [0, 3, 4]).to(device))
