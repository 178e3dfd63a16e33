# SPDX-License-Identifier: Apache-2.0
"""From Python to a folder that the commands open, and back: the same model, prompts and answers."""

import json
import os
import pickle
import stat

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import patchrec_fast as pf
from patchrec_fast import data
from patchrec_fast.cli.main import main
from patchrec_fast.layout.config import FILE

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = "Seen [HISTORY_SEQUENCE]. Next?"


@pytest.fixture(scope="module")
def dataset():
    return data.generate(users=20, items=60)


def made(dataset, policy=None, max_items=9, step=1, **words):
    tokenizer = data.sample_tokenizer(dataset.titles.values())
    prompt = pf.Prompt(tokenizer, **{"instruction": TEXT, **words})
    catalogue = pf.Catalogue.from_titles(dataset.titles, tokenizer)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=prompt.num_embeddings, initializer_range=0.3, **SIZES))
    return model, pf.Packer(catalogue, prompt, policy or pf.Text(), max_items, step=step)


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"policy": pf.SessionPatches(2, anchor="oldest"), "step": 3, "system": "Recommend."},
        {"policy": pf.ItemPatches(3), "max_items": None, "separators": False},
    ],
)
def test_there_and_back(dataset, tmp_path, options, attached):
    model, packer = made(dataset, **options)
    handle = pf.attach(model) if attached else None
    pf.save(tmp_path / "new" / "model", model, packer)
    assert handle is None or handle.detach() is None
    twin, again = pf.load(tmp_path / "new" / "model", dataset.titles)
    assert os.listdir(tmp_path / "new") == ["model"]
    for (name, there), (other, wanted) in zip(twin.state_dict().items(), model.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(there, wanted)
    assert pf.load(tmp_path / "new" / "model", dataset.titles, dataset.item_ids)[1].catalogue.ids is dataset.item_ids
    histories = dataset.split("test").histories
    np.testing.assert_array_equal(again.pack(histories).ids, packer.pack(histories).ids)
    assert repr(again.policy) == repr(packer.policy)
    found, expected = (pf.Recommender(*each).recommend(histories, 3) for each in ((twin, again), (model, packer)))
    np.testing.assert_array_equal(found.items, expected.items)


def test_the_command_line_opens_it(dataset, tmp_path, capsys):
    pytest.importorskip("pyarrow")
    model, packer = made(dataset, pf.SessionPatches(2))
    pf.save(tmp_path / "model", model, packer)
    data.save(dataset, tmp_path / "data")
    title = dataset.titles[7]
    flags = ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "data"), "--history", title, "--json"]
    assert main(["recommend", *flags, "--k", "3", "--method", "exact", "--normalize", "vocab"]) == 0
    answers = json.loads(capsys.readouterr().out)["recommendations"]
    expected = pf.Recommender(model, packer).recommend([[7]], 3, "exact")
    assert [[answer["title"] for answer in answers]] == expected.titles()


def test_a_folder_of_its_own_is_replaced(dataset, tmp_path):
    model, packer = made(dataset)
    pf.save(tmp_path, model, packer)  # empty
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    with torch.no_grad():
        model.model.norm.weight.fill_(2)
    pf.save(tmp_path, model, packer)
    twin, _ = pf.load(tmp_path, dataset.titles)
    assert (twin.model.norm.weight == 2).all()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1  # safetensors' own are private


@pytest.mark.parametrize("name", ["run.json", "notes.txt", "checkpoint-3/config.json"])
def test_what_is_not_its_own_stays(dataset, tmp_path, name):
    model, packer = made(dataset)
    folder = tmp_path / "model"
    pf.save(folder, model, packer)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("mine")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=rf"folder: .* holds {name.split('/')[0]}, which save\(\) did not write"):
        pf.save(folder, model, packer)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert os.listdir(tmp_path) == ["model"]
    (folder / name).unlink()
    (folder / FILE).unlink()  # somebody's model, not ours
    with pytest.raises(ValueError, match="which save"):
        pf.save(folder, model, packer)
    (tmp_path / "model.json").write_text("a file")
    with pytest.raises(ValueError, match=r"holds model.json, which save"):
        pf.save(tmp_path / "model.json", model, packer)
    assert (tmp_path / "model.json").read_text() == "a file"


def test_whole_or_not_at_all(dataset, tmp_path, monkeypatch):
    model, packer = made(dataset)
    pf.save(tmp_path / "model", model, packer)

    def fails(folder, **options):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model, "save_pretrained", fails)
    for folder in (tmp_path / "model", tmp_path / "other"):
        with pytest.raises(OSError, match=f"No space left on device: '{folder}'"):
            pf.save(folder, model, packer)
    assert os.listdir(tmp_path) == ["model"]
    assert len(pf.load(tmp_path / "model", dataset.titles)) == 2


class Own:
    def assign(self, history, rng):
        return pf.Text().assign(history, rng)


def test_what_no_folder_can_say(dataset, tmp_path):
    model, packer = made(dataset)
    folder = tmp_path / "model"
    with pytest.raises(TypeError, match=r"policy: expected one of Text, ItemPatches, .* got <.*Own object"):
        pf.save(folder, model, pf.Packer(packer.catalogue, packer.prompt, Own()))
    with pytest.raises(ValueError, match=r"packer: .* make another prompt"):
        pf.save(folder, *made(dataset, date="1 Jan 2020", system="Date me."))
    with pytest.raises(ValueError, match="packer: a pickle has taken its prompt's tokenizer"):
        pf.save(folder, model, pickle.loads(pickle.dumps(packer)))
    other = data.sample_tokenizer(["a b c"] * 3)
    catalogue = pf.Catalogue.from_titles({1: "a b"}, other)
    with pytest.raises(ValueError, match="packer: its titles' tokens are not those of its prompt's tokenizer"):
        pf.save(folder, model, pf.Packer(catalogue, packer.prompt, pf.Text()))
    with pytest.raises(TypeError, match="model: expected a causal language model of transformers, got Linear"):
        pf.save(folder, torch.nn.Linear(1, 1), packer)
    model.resize_token_embeddings(20)
    with pytest.raises(ValueError, match=r"model: its 20 embeddings do not cover .*resize_token_embeddings"):
        pf.save(folder, model, packer)
    assert not os.listdir(tmp_path)


def test_adapters_are_merged_first(dataset, tmp_path):
    peft = pytest.importorskip("peft")
    model, packer = made(dataset)
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], r=2))
    with pytest.raises(ValueError, match="model: it has adapters; merge them first"):
        pf.save(tmp_path / "model", model, packer)
    pf.save(tmp_path / "model", model.merge_and_unload(), packer)
    pf.load(tmp_path / "model", dataset.titles)
