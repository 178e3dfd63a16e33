# SPDX-License-Identifier: Apache-2.0
"""Folders of models and tokenizers: what is whole is opened bit for bit, what is not is refused by name."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from patchrec_fast import data
from patchrec_fast.layout.config import PromptConfig
from patchrec_fast.models import open_model, open_tokenizer, open_trained
from patchrec_fast.models.tiny import tiny_model

TITLES = {number: f"Title {number} of many" for number in range(30)}
TEXT = "Seen [HISTORY_SEQUENCE]. Next?"
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """As `train` leaves it."""
    folder = tmp_path_factory.mktemp("trained")
    sample = data.sample_tokenizer(TITLES.values())
    model, tokenizer = tiny_model(TITLES, sample, instruction=TEXT, hidden=16, layers=2, heads=2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    PromptConfig(TEXT).save(folder)
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "model")


def config(folder, **changes):
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, **changes}))


def weights(folder, change):
    held = load_file(folder / "model.safetensors")
    change(held)
    save_file(held, folder / "model.safetensors", {"format": "pt"})


def same(folder, model):
    found, tokenizer = open_model(folder)
    for (name, there), (other, wanted) in zip(found.state_dict().items(), model.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(there, wanted)
    return found, tokenizer


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shards", [False, True])
def test_whole_folders(trained, tmp_path, tied, shards):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    rows = len(open_tokenizer(trained))
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=rows, tie_word_embeddings=tied, **SIZES))
    model.save_pretrained(tmp_path, max_shard_size="8KB" if shards else "1GB")
    assert (tmp_path / "model.safetensors").exists() is not shards
    found, _ = same(tmp_path, model)
    assert not found.training


def test_buffers_of_older_checkpoints_are_no_tensors_too_many(trained, folder, tmp_path):
    weights(folder, lambda held: held.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    same(folder, open_model(trained)[0])
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=len(open_tokenizer(trained)), **sizes))
    model.save_pretrained(folder)
    weights(folder, lambda held: held.update({"transformer.h.0.attn.bias": torch.ones(1, 1, 32, 32)}))
    same(folder, model)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: config(f, num_hidden_layers=3), "they lack model.layers.2.input_layernorm.weight,"),
        (lambda f: config(f, num_hidden_layers=1), "config.json knows no model.layers.1.input_layernorm.weight,"),
        (lambda f: config(f, num_hidden_layers=10**9), "1000000000 layers, the weights have"),
        (lambda f: config(f, intermediate_size=8), "of another shape are model.layers.0.mlp.down_proj.weight (16, 48)"),
        (lambda f: config(f, model_type="gpt2"), "they lack"),
        (lambda f: config(f, tie_word_embeddings=False), "they lack lm_head.weight"),
        (lambda f: weights(f, lambda held: held.pop("model.norm.weight")), "they lack model.norm.weight"),
        (lambda f: weights(f, lambda held: held.update(extra=torch.ones(2))), "config.json knows no extra"),
        (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors there"),
        (lambda f: (f / "adapter_config.json").write_text("{}"), "it holds adapters (adapter_config.json)"),
        (lambda f: (f / "tokenizer_config.json").unlink(), "has no tokenizer_config.json"),
        (lambda f: config(f, model_type="own", auto_map={"AutoConfig": "own.Own"}), "it needs code of its own"),
    ],
)
def test_what_is_not_whole_is_refused(folder, spoil, said, monkeypatch, capfd):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question on the terminal"))
    (folder / "own.py").write_text("raise SystemExit('run')\n")
    spoil(folder)
    for opened in (open_model, open_trained):
        with pytest.raises((ValueError, FileNotFoundError)) as raised:
            opened(folder)
        assert said in str(raised.value)
        assert str(raised.value).startswith(str(folder))
    assert "LOAD REPORT" not in capfd.readouterr().err


def test_a_shard_that_is_missing_and_an_index_that_is_damaged(folder):
    model, _ = open_model(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="8KB")
    index = folder / "model.safetensors.index.json"
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    whole, content = shard.read_bytes(), json.loads(index.read_text())
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=shard.name):
        open_model(folder)
    shard.write_bytes(whole)
    for entry in (None, [], {}, {"a": 5}, {"a": "../b.safetensors"}):
        index.write_text(json.dumps({**content, "weight_map": entry}))
        with pytest.raises(ValueError, match=index.name):
            open_model(folder)


class Trap:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was opened')",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"])
def test_a_pickle_is_never_opened(folder, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match=rf"{name}\), which can run code and are never opened; convert"):
        open_model(folder)


def test_a_tokenizer_of_another_model(folder, tmp_path):
    words = [f"{a}{b}{c}" for a in "bcdfghjklm" for b in "aeiou" for c in "npqrst"]
    larger = data.sample_tokenizer([f"{one} {other}" for one in words for other in words[:9]])
    assert len(larger) > len(open_tokenizer(folder))
    larger.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"tokenizer.json has a token \d+, the model has \d+ embeddings"):
        open_model(folder)


def test_a_tokenizer_without_the_marks(folder):
    sample = data.sample_tokenizer(TITLES.values())
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(sample) + 64, **SIZES))  # rows enough
    for path in (*folder.glob("*.safetensors"), *folder.glob("tokenizer*")):
        path.unlink()
    model.save_pretrained(folder)
    sample.save_pretrained(folder)
    open_model(folder)  # training adds them
    with pytest.raises(ValueError, match=r"no <\|start_seq_id\|>, <\|end_seq_id\|>, <\|item_sep_id\|>"):
        open_trained(folder)
