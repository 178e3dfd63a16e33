# SPDX-License-Identifier: Apache-2.0
"""Whole training runs on the sample: what comes out, repeating, folders, and errors."""

import csv
import dataclasses
import json
import os
import resource

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import patchrec_fast as pf
from patchrec_fast import data, report
from patchrec_fast._lock import only_one
from patchrec_fast.layout.config import PromptConfig
from patchrec_fast.report import inputs
from patchrec_fast.train import curves
from patchrec_fast.train.recipes import load
from patchrec_fast.train.run import train
from tests.train.runs import RECIPE, same, weights


@pytest.mark.parametrize(
    ("stage", "policy"),
    [("text", pf.Text()), ("pft-i", pf.ItemPatches(2)), ("pft-s", pf.SessionPatches(2)), ("pretrain", pf.Text())],
)
def test_what_comes_out(run, small, tmp_path, stage, policy):
    result = run("out", stage)
    out = tmp_path / "out"
    assert result == json.loads((out / "result.json").read_text())
    assert (result["stage"], result["steps"], result["samples"], result["out"]) == (stage, 6, 60, str(out))
    assert result["val_loss"] < result["first_val_loss"]
    assert load(out / "recipe.toml", stage) == RECIPE
    record = json.loads((out / "run.json").read_text())
    assert (record["stage"], record["processes"], record["recipe"]["seed"]) == (stage, 1, 0)
    assert {"torch", "transformers", "patchrec_fast", "python"} <= record["versions"].keys()

    names = {path.name for path in out.iterdir()}
    assert not any(name.endswith((".bin", ".pt")) or name.startswith(".") for name in names)
    assert {name for name in names if name.startswith("checkpoint-")} == {f"checkpoint-{n}" for n in (2, 4, 6)}
    for folder in (out, out / "checkpoint-4"):
        settings = PromptConfig.load(folder)
        assert settings == PromptConfig(RECIPE.instruction, None, True, policy, 6)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert len(tokenizer) == model.get_input_embeddings().num_embeddings
        assert model.config.use_cache
        assert model.get_input_embeddings().padding_idx is None
    assert same(weights(out), weights(out / "checkpoint-6"))
    (tmp_path / "mine").touch()
    modes = {path.stat().st_mode for path in (*out.rglob("*"), tmp_path / "mine") if path.is_file()}
    assert len(modes) == 1  # as the umask says

    # The last validation loss, by hand, from the files alone.
    dataset = data.load(small / "data")
    packer = PromptConfig.load(out).packer(dataset.titles, AutoTokenizer.from_pretrained(out))
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    pf.attach(model)
    flat, offsets = (samples := dataset.split("val", 6)).histories
    places = [number * len(samples.targets) // 10 for number in range(10)]
    histories = [flat[offsets[place] : offsets[place + 1]] for place in places]
    losses = []
    for batch in (range(3), range(3, 6), range(6, 10)):  # 10 samples in batches of at most 4
        packed = packer.pack([histories[at] for at in batch], [samples.targets[places[at]] for at in batch])
        with torch.no_grad():
            losses.append(float(model(packed).loss))
    assert result["val_loss"] == pytest.approx(sum(losses) / 3, rel=1e-4)


def test_curves(run, tmp_path):
    result = run("out", limit_val=5)
    with (tmp_path / "out" / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "split", "loss", "tokens", "seconds"]
    at = {split: [int(row["step"]) for row in rows if row["split"] == split] for split in ("train", "val")}
    assert at == {"train": [1, 2, 3, 4, 5, 6], "val": [0, 3, 6]}
    for name in ("step", "tokens", "seconds"):
        values = [float(row[name]) for row in rows]
        assert values == sorted(values)
    assert int(rows[-1]["tokens"]) == result["tokens"]
    assert result["rows_per_second"] == pytest.approx(result["tokens"] / result["seconds"], rel=1e-2)


@pytest.mark.parametrize("stage", ["text", "pretrain", "history"])
def test_by_user(run, small, stage):
    """So many targets in each epoch; a loss that falls as by prompt; the speeds of one time."""
    changes = {"batch": 12, "targets_per_pass": 4, "steps": None, "epochs": 3, "save_steps": 100, "eval_steps": 0.5}
    result = run("out", stage, by="user", **changes)
    assert (result["by"], result["samples"]) == ("user", 60)
    assert result["val_loss"] < result["first_val_loss"]
    targets, rows = (result[name] * result["seconds"] for name in ("targets_per_second", "rows_per_second"))
    assert targets == pytest.approx(180, rel=1e-2)
    assert rows == pytest.approx(result["tokens"], rel=1e-2)
    if stage != "history":
        alone = run("alone", stage, by="prompt", **{**changes, "targets_per_pass": None})
        assert (alone["by"], alone["samples"]) == ("prompt", 60)
        assert result["val_loss"] == pytest.approx(alone["val_loss"], rel=0.1)


def test_by_user_where_prompts_share_enough(run):
    """Sessions counted from the newest item change with every item; a history that keeps all its items only grows."""
    assert run("grows", "text", max_items=0, steps=1)["by"] == "user"
    assert run("one", "text", max_items=0, steps=1, targets_per_pass=1)["by"] == "prompt"
    assert run("changes", "pft-s", steps=1)["by"] == "prompt"
    assert run("alone", "text", max_items=0, steps=1, share=False)["by"] == "prompt"
    assert run("titles", "history", steps=1, share=False)["by"] == "user"


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        ("history", {"by": "prompt"}, "by: stage 'history' learns many targets in one prompt, expected user"),
        ("text", {"by": "user", "share": False}, "by: 'user' reads once what prompts share"),
        ("text", {"by": "user", "attention": "sdpa"}, "by: 'user' reads once what prompts share"),
        ("text", {"by": "user", "batch": None, "rows": 60}, r"rows: got 60, but pass \d+ alone has"),
    ],
)
def test_by_user_or_an_error(run, stage, changes, message):
    with pytest.raises(ValueError, match=message):
        run("out", stage, **changes)


@pytest.mark.parametrize("changes", [{}, {"share": False}, {"attention": "sdpa"}], ids=str)
def test_tokens_are_the_rows_of_the_training_batches(run, small, changes):
    result = run("out", "text", steps=None, log_steps=5, eval_steps=100, **changes)
    dataset = data.load(small / "data")
    flat, offsets = (samples := dataset.split("train", 6)).histories
    tokenizer = AutoTokenizer.from_pretrained(small / "tokenizer")
    packer = PromptConfig(RECIPE.instruction, max_items=6).packer(dataset.titles, tokenizer)
    places = [number * len(samples.targets) // 60 for number in range(60)]
    packed = packer.pack([flat[offsets[at] : offsets[at + 1]] for at in places], samples.targets[places])
    assert result["steps"] == 15
    if changes:
        assert result["tokens"] == len(packed.position_ids)
    else:  # rows before the history, in a batch of four once; and what histories begin with alike
        once = len(packed.position_ids) - (60 - 15) * len(packer.prompt.prefix)
        assert 0.9 * once < result["tokens"] <= once


def test_one_seed_one_model(run, tmp_path):
    changes = {"accumulation": 2}
    run("one", "pretrain", **changes)
    run("other", "pretrain", workers=1, **changes)
    assert same(weights(tmp_path / "one"), weights(tmp_path / "other"))
    run("third", "pretrain", seed=1, **changes)
    assert not same(weights(tmp_path / "one"), weights(tmp_path / "third"))


def test_the_next_stage_starts_from_the_model_of_the_last(run, tmp_path):
    first = run("pretrain", "pretrain")
    second = run("pft-s", "pft-s", model=tmp_path / "pretrain", steps=2)
    scratch = run("scratch", "pft-s", steps=2)
    assert second["first_val_loss"] < first["first_val_loss"] - 0.1
    assert second["val_loss"] < scratch["val_loss"]
    tokenizers = [AutoTokenizer.from_pretrained(tmp_path / name).get_vocab() for name in ("pretrain", "pft-s")]
    assert tokenizers[0] == tokenizers[1]


def test_all_items_of_a_history(run, tmp_path, small):
    run("out", "text", max_items=0, steps=1)
    assert PromptConfig.load(tmp_path / "out").max_items is None
    assert load(tmp_path / "out" / "recipe.toml", "text").max_items == 0
    cut = run("cut", "text", max_items=6, steps=1)["tokens"]
    longest = int(np.diff(data.load(small / "data").offsets).max())
    rows = run("longest", "text", max_items=longest, steps=1)["tokens"]
    assert json.loads((tmp_path / "out" / "result.json").read_text())["tokens"] == rows > cut


def test_a_model_without_the_marks_gets_them(run, small, tmp_path):
    """A plain Hugging Face model, as downloaded, with the exact size of its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(small / "tokenizer")
    tokenizer.save_pretrained(tmp_path / "plain")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "plain")
    run("out", model=tmp_path / "plain")
    assert len(weights(tmp_path / "out")["model.embed_tokens.weight"]) == len(tokenizer) + 3


def test_lora(run, tmp_path):
    run("base", "pretrain", steps=1)
    before = weights(tmp_path / "base")
    run("out", model=tmp_path / "base", lora=True, lora_rank=2, steps=3)
    after = weights(tmp_path / "out")
    assert before.keys() == after.keys()  # a plain model again
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[-2] for name in changed} == {
        "embed_tokens", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    rows = (before["model.embed_tokens.weight"] != after["model.embed_tokens.weight"]).any(1).nonzero().flatten()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    marks = tokenizer.convert_tokens_to_ids(["<|start_seq_id|>", "<|end_seq_id|>", "<|item_sep_id|>"])
    assert rows.tolist() == sorted(marks)
    assert (tmp_path / "out" / "checkpoint-2" / "adapter_model.safetensors").is_file()


def test_gradient_checkpointing_changes_nothing(run, tmp_path):
    run("plain")
    run("checkpointed", gradient_checkpointing=True)
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "checkpointed"))


def test_bf16_is_near(run, tmp_path):
    plain, short = run("plain"), run("short", bf16=True)
    assert short["val_loss"] == pytest.approx(plain["val_loss"], rel=0.02)
    assert weights(tmp_path / "short")["model.embed_tokens.weight"].dtype == torch.float32
    assert not same(weights(tmp_path / "plain"), weights(tmp_path / "short"))


def test_rows_in_place_of_a_batch(run):
    result = run("out", rows=200, steps=None)
    assert result["tokens"] <= 200 * result["steps"]
    assert result["tokens"] >= 100 * (result["steps"] - 1)


def test_one_run_a_folder(run, tmp_path):
    with (
        only_one(tmp_path / "out"),
        pytest.raises(ValueError, match=f"another run is writing in {tmp_path / 'out'} now"),
    ):
        run("out")
    assert not (tmp_path / "out").exists()  # made for the lock, and empty
    assert run("out", steps=1)["steps"] == 1


def test_a_full_disk(run, tmp_path):
    """A child that may write no file of a checkpoint's size at its second one; the first stays and serves."""
    whole = run("whole", steps=4)
    pid = os.fork()
    if not pid:
        rename = os.rename

        def fill(source, target):
            rename(source, target)
            if str(target).endswith("checkpoint-2"):
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

        os.rename = fill
        try:
            run("out", steps=4)
        except OSError as error:
            os._exit(f"{tmp_path / 'out'}" in str(error))
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]
    assert run("out", steps=4, resume=True)["tokens"] == whole["tokens"]
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "out"))


def test_without_validation(small, tmp_path):
    dataset = data.load(small / "data")
    none = np.full_like(dataset.splits["val"], -1)
    data.save(dataclasses.replace(dataset, splits={**dataset.splits, "val": none}), tmp_path / "data")
    names = {"model": "tiny", "data": tmp_path / "data", "tokenizer": small / "tokenizer"}
    with pytest.warns(UserWarning, match=f"{tmp_path / 'data'}: its split 'val' is empty"):
        result = train(RECIPE, "text", out=tmp_path / "out", **names)
    assert result["val_loss"] is result["first_val_loss"] is None
    assert {point.split for point in curves.read(tmp_path / "out" / "curves.csv")} == {"train"}
    assert "none" in str(report.losses(inputs.runs([tmp_path / "out"])))

    data.save(dataclasses.replace(dataset, splits={**dataset.splits, "train": none}), tmp_path / "data")
    with pytest.raises(ValueError, match=f"data: {tmp_path / 'data'} has no training samples: its split 'train'"):
        train(RECIPE, "text", out=tmp_path / "other", **names)
    assert not (tmp_path / "other").exists()


# Errors


def test_the_output_folder_is_not_written_over(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        run("out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    with pytest.raises(FileNotFoundError, match=r"holds no run to resume; it has no run\.json"):
        run("out", resume=True)


def test_a_start_that_failed_does_not_hold_its_folder(run, tmp_path):
    with pytest.raises(FileNotFoundError):
        run("out", model=tmp_path / "nowhere")
    assert run("out", steps=1)["steps"] == 1
    with pytest.raises(ValueError, match="is not empty"):
        run("out", steps=1)


def test_an_output_folder_that_is_a_file(run, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="out is a file"):
        run("out")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_loss_that_is_not_finite(run, tmp_path):
    with pytest.raises(FloatingPointError, match=r"not finite; its tensors are in .*\.npz"):
        run("out", learning_rate=1e30, schedule="constant", clip=0.0)
    assert list((tmp_path / "out").glob("*.npz"))


def test_wrong_models(run, small, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model: no folder .*nowhere"):
        run("one", model=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        run("two", model=small / "tokenizer")
    run("base", steps=1)
    path = tmp_path / "base" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"model.safetensors: a file of weights is damaged"):
        run("three", model=tmp_path / "base")


def test_wrong_tokenizers(small, run, tmp_path):
    names = {"data": small / "data", "out": tmp_path / "out"}
    with pytest.raises(ValueError, match="tokenizer: expected a folder"):
        train(RECIPE, "text", model="tiny", **names)
    tokenizer = AutoTokenizer.from_pretrained(small / "tokenizer")
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "bare")
    names["out"] = tmp_path / "other"
    with pytest.raises(ValueError, match="no chat template"):
        train(RECIPE, "text", model="tiny", tokenizer=tmp_path / "bare", **names)


def test_a_batch_that_cannot_be_shared_out(run):
    with pytest.raises(ValueError, match=r"batch: expected a multiple of accumulation \* processes = 3 \* 1, got 4"):
        run("out", accumulation=3)
