# SPDX-License-Identifier: Apache-2.0
"""Runs that were killed, moved or damaged, and go on, or say why not."""

import dataclasses
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from patchrec_fast import data
from patchrec_fast.train import curves
from patchrec_fast.train.checkpoints import SEAL, latest
from patchrec_fast.train.run import train
from tests.train.runs import RECIPE, same, weights


def wait_for(condition, process, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.002)


@pytest.mark.parametrize(("lora", "by"), [(False, "prompt"), (False, "user"), (True, "prompt")])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(small, run, tmp_path, lora, by):
    """Killed in a process of its own, which also shows that nothing depends on Python's hash seed."""
    changes = {"steps": 60, "epochs": 5, "limit_train": 100, "eval_steps": 30, "save_steps": 7, "lora": lora, "by": by}
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
