# SPDX-License-Identifier: Apache-2.0
"""Recipes: what the built-in ones say, layers, files, and errors that name the key."""

import dataclasses

import pytest

from patchrec_fast._options import PLACEHOLDER
from patchrec_fast.train.recipes import BUILT_IN, Recipe, load
from patchrec_fast.train.stages import STAGES


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "mine.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_the_papers_numbers():
    """Section 4.1 of the paper and, for ML-100K's sessions, the released script."""
    rates = {name: [load(name, stage).learning_rate for stage in STAGES] for name in ("ml-1m", "goodreads", "ml-100k")}
    assert set(rates["ml-1m"]) == {8e-6}
    assert set(rates["goodreads"]) == {5e-5}
    assert dict(zip(STAGES, rates["ml-100k"], strict=True)) == {**dict.fromkeys(STAGES, 1e-5), "pft-s": 3e-6}
    for name, batch, group in (("ml-1m", 64, 5), ("goodreads", 32, 5), ("ml-100k", 64, 20)):
        recipe = load(name, "pft-s")
        assert (recipe.batch, recipe.group, recipe.keep, recipe.max_items) == (batch, group, 5, 100)
        assert (recipe.schedule, recipe.warmup, recipe.clip, recipe.epochs, recipe.bf16) == (
            "cosine",
            0.05,
            0.3,
            1,
            True,
        )


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_recipes_hold_one_history(name):
    for stage in STAGES:
        assert load(name, stage).instruction.count(PLACEHOLDER) == 1
    assert ("read" if name == "goodreads" else "atched") in load(name, "text").instruction


def test_the_stage_wins_over_the_file_and_the_file_over_the_defaults(file):
    path = file("epochs = 2\nbatch = 8\n[stage.pft-s]\nbatch = 4\n")
    assert load(path, "pft-s") == dataclasses.replace(Recipe(), epochs=2, batch=4)
    assert load(path, "text") == dataclasses.replace(Recipe(), epochs=2, batch=8)
    assert load(path, "text").override({"batch": 2}).batch == 2


def test_rows_and_batch_take_each_others_place(file):
    recipe = load(file("rows = 4096\n[stage.text]\nbatch = 3\n"), "pft-i")
    assert (recipe.rows, recipe.batch) == (4096, None)
    recipe = load(file("rows = 4096\n[stage.text]\nbatch = 3\n"), "text")
    assert (recipe.rows, recipe.batch) == (None, 3)
    with pytest.raises(ValueError, match="batch, rows: expected one of them, got batch=3, rows=5"):
        Recipe().override({"batch": 3, "rows": 5})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rows": 100, "steps": 3, "p": 0.25, "lora": True, "system": ""},
        {"learning_rate": 1e-300, "instruction": 'a "b"\n\t\\ \x7f é 🎬 [HISTORY_SEQUENCE]'},
    ],
)
def test_a_saved_recipe_loads_as_itself(changes, tmp_path):
    recipe = Recipe().override(changes)
    recipe.save(tmp_path / "recipe.toml")
    assert load(tmp_path / "recipe.toml", "text") == recipe
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("learning_rat = 1.0", ValueError, "unknown key 'learning_rat', did you mean 'learning_rate'"),
        (
            "[stage.pft-s]\nlearningrate = 1.0",
            ValueError,
            r"unknown key of \[stage.pft-s\] 'learningrate', did you mean",
        ),
        ("[stage.pfts]\nbatch = 1", ValueError, "unknown stage 'pfts', did you mean 'pft-s'"),
        ("stage = 3", TypeError, "stage: expected a table, got 3"),
        ("stage.text = 3", TypeError, r"key of \[stage.text\]: expected a table, got 3"),
        ("batch = 0", ValueError, "batch: expected at least 1, got 0"),
        ("batch = true", TypeError, "batch: expected int or none, got True"),
        ("epochs = 1.5", TypeError, "epochs: expected int, got 1.5"),
        ("lora = 1", TypeError, "lora: expected bool, got 1"),
        ('learning_rate = "1e-5"', TypeError, "learning_rate: expected float, got '1e-5'"),
        ("learning_rate = nan", ValueError, "learning_rate: expected at least 0, got nan"),
        ("clip = inf", ValueError, "clip: expected at least 0, got inf"),
        ("learning_rate = -1", ValueError, "learning_rate: expected at least 0, got -1"),
        ("weight_decay = nan", ValueError, "weight_decay: expected at least 0, got nan"),
        (f"group = {10**30}", ValueError, f"group: expected at most 2147483647, got {10**30}"),
        (f"steps = {10**30}", ValueError, "steps: expected at most"),
        (f"batch = {10**30}", ValueError, "batch: expected at most"),
        ("epochs = 1000000000", ValueError, "epochs: expected at most 10000"),
        ("hidden = 1000000000", ValueError, "hidden: expected at most"),
        ("heads = 0", ValueError, "heads: expected at least 1"),
        ("seed = -1", ValueError, "seed: expected at least 0"),
        (f"seed = {2**32}", ValueError, "seed: expected at most 4294967295"),
        ("p = 1.5", ValueError, "p: expected at most 1, got 1.5"),
        ("save_steps = 1.5", ValueError, "save_steps: expected a whole number or a fraction below 1, got 1.5"),
        ("log_steps = 1e300", ValueError, "log_steps: expected at most"),
        ("x = " + "[" * 100_000, ValueError, "nested too deep|Invalid value|unknown key"),
        ("warmup = 1", ValueError, "warmup: expected a fraction below 1, got 1"),
        ("checkpoints = 1", ValueError, "checkpoints: expected at least 2"),
        ("batch = 1\nrows = 1", ValueError, "batch, rows: expected one of them"),
        ("a = = 1", ValueError, "Invalid value"),
    ],
)
def test_errors_name_the_file_and_the_key(file, text, error, message):
    path = file(text)
    with pytest.raises(error, match=message) as raised:
        load(path, "pft-s")
    assert str(path) in str(raised.value)


def test_no_such_recipe(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a TOML file or one of goodreads, ml-100k, ml-1m, tiny"):
        load(tmp_path / "none.toml", "text")


def test_a_whole_number_is_a_float(file):
    assert load(file("learning_rate = 1"), "text").learning_rate == 1
