# SPDX-License-Identifier: Apache-2.0
"""`patchrec-fast train`: what the flags become, what is printed, and two processes under torchrun."""

import json
import os
import subprocess
import sys

import pytest
import torch

from patchrec_fast import Dropout, ItemPatches, SessionPatches, Text, data
from patchrec_fast.cli import main as cli
from patchrec_fast.layout.config import PromptConfig
from patchrec_fast.train import run as command
from patchrec_fast.train.recipes import TYPES, Recipe, load
from patchrec_fast.train.stages import STAGES
from patchrec_fast.train.stages import stage as make_stage

NEEDED = ["train", "--model", "tiny", "--data", "sample", "--stage", "text", "--out", "nowhere"]
SMALL = ["--max-items=4", "--batch=4", "--limit-train=24", "--limit-val=4", "--steps=3", "--eval-steps=3"]
SMALL += ["--hidden=16", "--layers=1", "--heads=2"]


@pytest.fixture
def called(monkeypatch, tmp_path):
    """What `train` is called with, in place of training; there are folders of the names that the tests give."""
    for name in ("folder", "there"):
        (tmp_path / "here" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    calls = []

    def record(recipe, stage, **rest):
        calls.append((recipe, stage, rest))
        return {"out": "nowhere", "stage": stage, "steps": 1, "first_val_loss": 2.0, "val_loss": 1.0,
                "by": "user", "rows_per_second": 1234.5, "targets_per_second": 56.7}  # fmt: skip

    monkeypatch.setattr(command, "train", record)
    return calls


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    dataset = data.generate(users=30, items=100)
    data.save(dataset, folder / "data")
    data.sample_tokenizer(dataset.titles.values()).save_pretrained(folder / "tokenizer")
    return [f"--data={folder / 'data'}", f"--tokenizer={folder / 'tokenizer'}", "--model=tiny"]


def test_every_key_of_a_recipe_is_a_flag(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    shown = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in shown for name in TYPES)


def test_flags_win_over_the_recipe_and_it_over_the_defaults(called, tmp_path):
    (tmp_path / "mine.toml").write_text("epochs = 2\nseed = 5\nlora = true\n[stage.text]\nkeep = 3\n")
    assert cli.main([*NEEDED, "--recipe", str(tmp_path / "mine.toml"), "--seed", "6", "--no-lora", "--bf16"]) == 0
    [(recipe, stage, rest)] = called
    assert recipe == Recipe().override({"epochs": 2, "keep": 3, "seed": 6, "bf16": True})
    assert (stage, rest["resume"], rest["tokenizer"]) == ("text", False, "sample")


def test_rows_take_the_place_of_the_recipes_batch(called):
    assert cli.main([*NEEDED, "--recipe", "ml-1m", "--rows", "4096"]) == 0
    assert (called[0][0].rows, called[0][0].batch) == (4096, None)


def test_recipe_and_tokenizer_that_are_not_given(called, monkeypatch):
    monkeypatch.setenv("PATCHREC_FAST_TOKENIZER", "there")
    cli.main(NEEDED)
    cli.main(["train", "--model=tiny", "--data=folder", "--stage=text", "--out=x"])
    cli.main(["train", "--model=folder", "--data=folder", "--stage=text", "--out=x", "--resume"])
    recipes, _, rest = zip(*called, strict=True)
    assert recipes == (load("tiny", "text"), load("tiny", "text"), Recipe())
    assert [one["tokenizer"] for one in rest] == ["sample", "there", None]
    assert [one["resume"] for one in rest] == [False, False, True]


def test_without_a_recipe_the_next_stage_keeps_the_prompt(called, tmp_path):
    prompt = {"instruction": "Seen: [HISTORY_SEQUENCE].", "separators": False, "max_items": 7}
    PromptConfig(**prompt).save(tmp_path)
    given = ["train", f"--model={tmp_path}", "--data=folder", "--stage=text", "--out=x"]
    cli.main(given)
    cli.main([*given, "--max-items=9"])
    cli.main([*given, "--recipe=ml-1m"])
    kept = {"separators": False, "max_items": 7}  # of which the recipe says nothing
    assert [one[0] for one in called] == [
        Recipe().override({**prompt, "system": ""}),
        Recipe().override({**prompt, "system": "", "max_items": 9}),
        load("ml-1m", "text").override(kept),
    ]


SAVED = [
    (PromptConfig("A [HISTORY_SEQUENCE].", policy=SessionPatches(20), max_items=None), {"group": 20, "max_items": 0}),
    (PromptConfig("B [HISTORY_SEQUENCE].", "S", policy=ItemPatches(0)), {"keep": 0, "system": "S"}),
    (PromptConfig("C [HISTORY_SEQUENCE].", separators=False, policy=Text(), max_items=3),
     {"separators": False, "max_items": 3}),
    (PromptConfig("D [HISTORY_SEQUENCE].", policy=Dropout(0.25)), {"p": 0.25}),
    (PromptConfig("E [HISTORY_SEQUENCE].", policy=ItemPatches(5, step=4)), {"keep": 5, "patch_step": 4}),
    (PromptConfig("F [HISTORY_SEQUENCE].", policy=SessionPatches(5, anchor="oldest"), max_items=20, step=6),
     {"group": 5, "anchor": "oldest", "max_items": 20, "items_step": 6}),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "kept"), SAVED)
@pytest.mark.parametrize("stage", STAGES)
def test_what_a_model_was_trained_with_is_the_default_field_by_field(called, tmp_path, capsys, settings, kept, stage):
    settings.save(tmp_path)
    kept = {"instruction": settings.instruction, "system": "", **kept}
    (tmp_path / "mine.toml").write_text("epochs = 2\n[stage.pft-s]\ngroup = 4\n[stage.pft-i]\nkeep = 9\n")
    given = ["train", f"--model={tmp_path}", "--data=folder", f"--stage={stage}", "--out=x"]
    assert cli.main(given) == cli.main([*given, f"--recipe={tmp_path / 'mine.toml'}"]) == 0
    file = {"pft-s": {"group": 4}, "pft-i": {"keep": 9}}.get(stage, {})
    assert [one[0] for one in called] == [
        Recipe().override(kept),
        Recipe().override({**kept, "epochs": 2, **file}),
    ]
    first, second = capsys.readouterr().err.splitlines()
    most = f" to {kept['max_items'] + 5}" if "items_step" in kept else ""
    items = {0: "all items"}.get(kept.get("max_items", 100), f"newest {kept.get('max_items', 100)}{most} items")
    append_only = {key: kept[key] for key in ("patch_step", "anchor") if key in kept}
    policy = make_stage(stage, keep=kept.get("keep", 5), group=kept.get("group", 5), **append_only).final
    assert first == f"prompt: {policy!r}, {items}"
    differ = [f"; {key} {value} (the model's: {kept[key]})" for key, value in file.items() if key in kept]
    policy = make_stage(stage, keep=9, group=4, **append_only).final
    assert second == f"prompt: {policy!r}, {items}{''.join(differ)}"


def test_a_recipe_that_replaces_the_prompt_says_so(called, tmp_path, capsys):
    PromptConfig("Old\x1b [HISTORY_SEQUENCE]").save(tmp_path)
    given = ["train", f"--model={tmp_path}", "--data=folder", "--stage=text", "--out=x", "--recipe=tiny"]
    cli.main(given)
    [line] = capsys.readouterr().err.splitlines()
    assert called[0][0] == load("tiny", "text")
    assert line == (
        "prompt: Text(), newest 30 items; "
        "instruction 'Watched: [HISTORY_SEQUENCE]. Next?' (the model's: 'Old\\x1b [HISTORY_SEQUENCE]'); "
        "max_items 30 (the model's: 100)"
    )
    cli.main([*given, "--max-items=0"])
    assert capsys.readouterr().err.startswith("prompt: Text(), all items; ")


@pytest.mark.parametrize("field", ["keep", "group", "max_items"])
def test_a_number_of_the_model_that_is_absurd(called, tmp_path, capsys, field):
    policies = {"keep": ItemPatches(10**30), "group": SessionPatches(10**30), "max_items": Text()}
    PromptConfig("[HISTORY_SEQUENCE]", policy=policies[field], max_items=10**30).save(tmp_path)
    assert cli.main(["train", f"--model={tmp_path}", "--data=folder", "--stage=text", "--out=x"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'patchrec.json'}: " in line
    assert "expected at most" in line
    assert not called


@pytest.mark.parametrize(
    ("flag", "wrong", "message", "right"),
    [
        ("--keep=3", "--stage=pft-s", "--keep: --stage pft-s has none, expected --stage pft-i", "--stage=pft-i"),
        ("--group=3", "--stage=text", "--group: --stage text has none, expected --stage pft-s", "--stage=pft-s"),
        ("--p=0", "--stage=pft-i", "--p: --stage pft-i has none, expected --stage pretrain or", "--stage=dropout"),
        ("--hidden=8", "--model=folder", "--hidden: --model folder has a size of its own", "--model=tiny"),
        ("--layers=4", "--model=folder", "--layers: --model folder has a size of its own", "--model=tiny"),
        ("--heads=4", "--model=folder", "--heads: --model folder has a size of its own", "--model=tiny"),
        ("--lora-rank=16", "--no-lora", "--lora-rank: without --lora", "--lora"),
        ("--targets-per-pass=4", "--by=prompt", "--targets-per-pass: --by prompt reads one target", "--by=user"),
    ],
)
def test_a_flag_that_nothing_would_read(called, tmp_path, capsys, flag, wrong, message, right):
    assert cli.main([*NEEDED, flag, wrong]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"patchrec-fast train: error: {message}")
    assert not called
    assert cli.main([*NEEDED, flag, right]) == 0
    (tmp_path / "mine.toml").write_text("keep = 3\ngroup = 3\np = 0.5\nhidden = 8\nlora_rank = 2\n")  # of any stage
    assert cli.main([*NEEDED, wrong, f"--recipe={tmp_path / 'mine.toml'}"]) == 0


def test_one_line_for_people_or_for_programs(called, capsys, monkeypatch):
    cli.main(NEEDED)
    result = command.train(*called[0][:2])
    assert capsys.readouterr().out == (
        "nowhere: text by user, 1 steps, validation loss 2.000 -> 1.000, 1,234 rows/s, 56.7 targets/s\n"
    )
    monkeypatch.setattr(command, "train", lambda *_, **__: {**result, "out": "no\x1b[2Jwhere\n"})
    cli.main(NEEDED)
    assert capsys.readouterr().out.startswith(r"no\x1b[2Jwhere\n: text")
    older = {name: value for name, value in result.items() if name not in ("by", "targets_per_second")}
    monkeypatch.setattr(command, "train", lambda *_, **__: older)
    cli.main(NEEDED)
    assert capsys.readouterr().out.endswith("text by prompt, 1 steps, validation loss 2.000 -> 1.000, 1,234 rows/s\n")
    cli.main([*NEEDED, "--json"])
    [line] = capsys.readouterr().out.splitlines()
    assert json.loads(line)["val_loss"] == 1.0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--batch", "0"], "batch: expected at least 1, got 0"),
        (["--batch", "1", "--rows", "1"], "batch, rows: expected one of them"),
        (["--recipe", "ml1m"], "no file ml1m, expected a TOML file or one of"),
        (["--instruction", "no place"], "[HISTORY_SEQUENCE] exactly once"),
        (["--schedule", "cosinus"], "cosinus"),
    ],
)
def test_errors_are_one_line(flags, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*NEEDED, *flags]) == 1
    shown = capsys.readouterr().err.splitlines()[-1]
    assert shown.startswith("patchrec-fast train: error: ")
    assert words in shown


def test_a_loss_that_is_not_finite_is_one_line(small, tmp_path, capsys):
    flags = ["--learning-rate=1e30", "--schedule=constant", "--clip=0", f"--out={tmp_path / 'out'}", "--stage=text"]
    assert cli.main(["train", *small, *SMALL, *flags]) == 1
    assert "is not finite; its tensors are in" in capsys.readouterr().err.splitlines()[-1]


def test_interrupted_it_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "train", interrupted)
    assert cli.main(NEEDED) == 130
    assert "--resume" in capsys.readouterr().err


def test_nothing_but_the_result_where_there_is_no_terminal(small, tmp_path, capfd):
    assert cli.main(["train", *small, *SMALL, "--stage=pft-s", f"--out={tmp_path / 'out'}", "--json"]) == 0
    shown = capfd.readouterr()
    assert json.loads(shown.out)["steps"] == 3
    assert "%|" not in shown.err


def test_two_processes_train_as_one_that_accumulates(small, tmp_path):
    from safetensors.torch import load_file

    flags = ["train", *small, *SMALL, "--stage=pretrain", "--learning-rate=1e-3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    launch += ["-m", "patchrec_fast.cli", *flags, f"--out={tmp_path / 'two'}", "--json"]
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    assert cli.main([*flags, f"--out={tmp_path / 'one'}", "--accumulation=2"]) == 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=2e-5)  # a fiftieth of a step
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two")]
    assert results[0]["tokens"] == results[1]["tokens"] == json.loads(line)["tokens"]
    assert results[0]["train_loss"] == pytest.approx(results[1]["train_loss"], rel=1e-5)
    assert (tmp_path / "two" / "checkpoint-3" / "rng_state_1.pth").is_file()
