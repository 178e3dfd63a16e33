# SPDX-License-Identifier: Apache-2.0
"""Whole training runs on the sample: what comes out, repeating, resuming, and errors."""

import csv
import dataclasses
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import patchrec_fast as pf
from patchrec_fast import data, report
from patchrec_fast._lock import only_one
from patchrec_fast.hf.settings import Settings
from patchrec_fast.report import inputs
from patchrec_fast.train import curves
from patchrec_fast.train.checkpoints import SEAL, latest
from patchrec_fast.train.recipes import Recipe, load
from patchrec_fast.train.run import train

RECIPE = Recipe(
    instruction="Seen [HISTORY_SEQUENCE]. Next?",
    system="",
    max_items=6,
    keep=2,
    group=2,
    learning_rate=1e-2,
    clip=1.0,
    batch=4,
    steps=6,
    limit_train=60,
    limit_val=10,
    hidden=16,
    layers=1,
    heads=2,
    log_steps=1,
    eval_steps=3,
    save_steps=2,
    checkpoints=5,
)


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A dataset folder, and a folder of its tokenizer."""
    folder = tmp_path_factory.mktemp("small")
    dataset = data.generate(users=30, items=100)
    data.save(dataset, folder / "data")
    data.sample_tokenizer(dataset.titles.values()).save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture
def run(small, tmp_path):
    def start(name, stage="pft-s", recipe=RECIPE, model="tiny", resume=False, **changes):
        tokenizer = small / "tokenizer" if model == "tiny" else None
        recipe = recipe.override(changes)
        out = tmp_path / name
        return train(recipe, stage, model=model, data=small / "data", out=out, tokenizer=tokenizer, resume=resume)

    return start


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


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
        settings = Settings.load(folder)
        assert settings == Settings(RECIPE.instruction, None, True, policy, 6)
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
    packer = Settings.load(out).packer(dataset.titles, AutoTokenizer.from_pretrained(out))
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
    assert result["tokens_per_second"] == pytest.approx(result["tokens"] / result["seconds"], rel=1e-2)


@pytest.mark.parametrize("changes", [{}, {"share_prefix": False}, {"attention": "sdpa"}], ids=str)
def test_tokens_are_the_rows_of_the_training_batches(run, small, changes):
    result = run("out", "text", steps=None, log_steps=5, eval_steps=100, **changes)
    dataset = data.load(small / "data")
    flat, offsets = (samples := dataset.split("train", 6)).histories
    tokenizer = AutoTokenizer.from_pretrained(small / "tokenizer")
    packer = Settings(RECIPE.instruction, max_items=6).packer(dataset.titles, tokenizer)
    places = [number * len(samples.targets) // 60 for number in range(60)]
    packed = packer.pack([flat[offsets[at] : offsets[at + 1]] for at in places], samples.targets[places])
    assert result["steps"] == 15
    shared = 0 if changes else (60 - 15) * packed.prefix  # rows before the history, in a batch of four once
    assert result["tokens"] == len(packed.position_ids) - shared


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
    assert Settings.load(tmp_path / "out").max_items is None
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


# Resuming


def wait_for(condition, process, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.002)


@pytest.mark.parametrize("lora", [False, True])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(small, run, tmp_path, lora):
    """Killed in a process of its own, which also shows that nothing depends on Python's hash seed."""
    changes = {"steps": 60, "epochs": 5, "limit_train": 100, "eval_steps": 30, "save_steps": 7, "lora": lora}
    RECIPE.override(changes).save(tmp_path / "recipe.toml")
    command = [sys.executable, "-m", "patchrec_fast.cli", "train", "--model=tiny", "--stage=pretrain"]
    command += [f"--data={small / 'data'}", f"--tokenizer={small / 'tokenizer'}", f"--out={tmp_path / 'killed'}"]
    command += [f"--recipe={tmp_path / 'recipe.toml'}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"}
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    killed = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for((tmp_path / "killed" / "checkpoint-14" / SEAL).is_file, killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed" / "patchrec.json").exists()
    result = run("killed", "pretrain", resume=True, **changes)
    whole = run("whole", "pretrain", **changes)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    points = [[point[:4] for point in curves.read(tmp_path / name / "curves.csv")] for name in ("whole", "killed")]
    assert points[0] == points[1]  # all but the seconds
    assert result["tokens"] == whole["tokens"] == points[0][-1][3]


def test_a_finished_run_is_left_alone(run, tmp_path):
    result = run("out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert run("out", resume=True) == result
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def unfinished(out):
    """As if it had been killed before the model was written."""
    for name in ("patchrec.json", "result.json", "model.safetensors"):
        (out / name).unlink()


def test_a_checkpoint_without_seal_is_not_taken(run, tmp_path):
    run("out")
    out = tmp_path / "out"
    whole = weights(out)
    unfinished(out)
    (out / "checkpoint-6" / SEAL).unlink()
    (out / "checkpoint-6" / "optimizer.pt").write_bytes(b"cut")
    assert latest(out) == out / "checkpoint-4"
    run("out", resume=True)
    assert same(whole, weights(out))
    assert latest(out) == out / "checkpoint-6"
    assert [point.step for point in curves.read(out / "curves.csv") if point.split == "train"] == [1, 2, 3, 4, 5, 6]


def test_a_run_killed_before_its_model_was_written(run, tmp_path):
    result = run("out")
    whole = weights(tmp_path / "out")
    unfinished(tmp_path / "out")
    assert run("out", resume=True) == result
    assert same(whole, weights(tmp_path / "out"))


def test_resuming_the_same_run_warns_of_no_other(run, tmp_path, caplog):
    fractions = {"log_steps": 0.2, "eval_steps": 0.4, "save_steps": 0.5}
    transformers = logging.getLogger("transformers")
    transformers.addHandler(caplog.handler)
    try:
        run("out", **fractions)
        unfinished(tmp_path / "out")
        run("out", resume=True, **fractions)
    finally:
        transformers.removeHandler(caplog.handler)
    steps = [point.step for point in curves.read(tmp_path / "out" / "curves.csv") if point.split == "val"]
    assert steps == [0, 3, 6]  # 0.4 of 6, rounded up
    assert "do not match" not in caplog.text


def test_without_any_checkpoint_a_run_starts_again(run, tmp_path):
    run("out")
    out = tmp_path / "out"
    whole = weights(out)
    unfinished(out)
    for path in out.glob(f"*/{SEAL}"):
        path.unlink()
    run("out", resume=True)
    assert same(whole, weights(out))
    assert [point.step for point in curves.read(out / "curves.csv") if point.split == "val"] == [0, 3, 6]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
def test_a_damaged_checkpoint_is_named(run, tmp_path, name):
    run("out")
    unfinished(tmp_path / "out")
    path = tmp_path / "out" / "checkpoint-6" / name
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content, problem in ((whole[:-1], "expected"), (flipped, "its content is not what was written")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path}: the checkpoint is damaged: {problem}"):
            run("out", resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.5}, "learning_rate: the run in .* had 0.01, got 0.5"),
        ({"steps": 5}, "steps: the run in .* had 6, got 5"),
        ({"stage": "pft-i"}, "stage: the run in .* had 'pft-s', got 'pft-i'"),
    ],
)
def test_another_run_cannot_be_resumed(run, changes, message):
    run("out")
    with pytest.raises(ValueError, match=message):
        run("out", resume=True, **changes)


def test_damaged_files_of_a_run_are_named(run, tmp_path):
    run("out", steps=2)
    out = tmp_path / "out"
    for name in ("result.json", "run.json", "checkpoint-2/checkpoint.json", "curves.csv"):
        path = out / name
        whole = path.read_bytes()
        for content in (b"", b"{}", b"[]", b"x", b"[" * 100_000, b'{"stage": NaN}', b"\xff"):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=f"{path}: "):
                run("out", resume=True, steps=2)
        path.write_bytes(whole)
        (out / "result.json").unlink(missing_ok=True)


def test_a_run_that_moved_goes_on(small, run, tmp_path):
    run("base", "pretrain", steps=1)
    names = {"model": tmp_path / "base", "data": small / "data", "out": tmp_path / "out"}
    recipe = RECIPE.override({"steps": 2})
    train(recipe, "text", **names)
    whole = weights(tmp_path / "out")
    unfinished(tmp_path / "out")
    (tmp_path / "out" / "checkpoint-2" / SEAL).unlink()
    moved = {name: tmp_path / "elsewhere" / name for name in names}
    for name, path in names.items():
        shutil.copytree(path, moved[name])
    train(recipe, "text", resume=True, **moved)
    assert same(whole, weights(moved["out"]))
    for path in moved.values():
        assert not (path / "unfinished").exists()


def reversed_items(folder):
    dataset = data.load(folder)
    data.save(dataclasses.replace(dataset, items=dataset.items[::-1].copy()), folder)


def other_weights(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def other_epsilon(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))


def other_template(folder):
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text() + " ")


@pytest.mark.parametrize(
    ("folder", "change", "words"),
    [
        ("data", reversed_items, "the data: items"),
        ("base", other_weights, "the weights"),
        ("base", other_epsilon, "the configuration: rms_norm_eps 1e-06 and not 0.5"),
        ("base", other_template, "the tokenizer"),
    ],
)
def test_what_a_run_began_with_may_not_change(small, run, tmp_path, folder, change, words):
    run("base", "pretrain", steps=1)
    shutil.copytree(small / "data", tmp_path / "data")
    names = {"model": tmp_path / "base", "data": tmp_path / "data", "out": tmp_path / "out"}
    recipe = RECIPE.override({"steps": 1})
    train(recipe, "text", **names)
    unfinished(tmp_path / "out")
    change(tmp_path / folder)
    with pytest.raises(ValueError, match=f"what it began with differs in {words}"):
        train(recipe, "text", resume=True, **names)


def test_a_start_that_was_killed(run, tmp_path):
    """Whatever of its files there is, whole or not, the folder can be started in again."""
    out = tmp_path / "out"
    out.mkdir()
    (out / ".run.json.part-0123456789abcdef.json").write_text("{")
    (out / "recipe.toml").write_text("")
    run("out", steps=1)
    assert not list(out.glob(".*"))


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
