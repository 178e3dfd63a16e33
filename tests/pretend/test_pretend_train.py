# SPDX-License-Identifier: Apache-2.0
"""`train` on the pretended device: the losses of the same run on the CPU."""

import csv
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from patchrec_fast import data
from patchrec_fast.ops.compress import operator, reference
from tests.train.runs import RECIPE

pytest.importorskip("accelerate")

SMALL = replace(RECIPE, steps=3, limit_val=4, save_steps=3, hidden=32)  # heads of 16 columns: FlexAttention serves
ON_THE_CPU = """
import sys
from tests.pretend.test_pretend_train import SMALL
from patchrec_fast.train.run import train
folder = sys.argv[1]
train(SMALL, "pft-s", model="tiny", data=f"{folder}/data", out=f"{folder}/cpu", tokenizer=f"{folder}/tokenizer")
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with the sample, its tokenizer and a run on the CPU, in a process without the device."""
    folder = tmp_path_factory.mktemp("small")
    dataset = data.generate(users=30, items=100)
    data.save(dataset, folder / "data")
    data.sample_tokenizer(dataset.titles.values()).save_pretrained(folder / "tokenizer")
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'kernels'}"}
    environment.pop("TRITON_INTERPRET", None)
    subprocess.run([sys.executable, "-c", ON_THE_CPU, str(folder)], check=True, env=environment, cwd=root)
    return folder


def losses(folder):
    with open(folder / "curves.csv", newline="") as file:
        return [(row["split"], int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]


@pytest.mark.parametrize(("bf16", "tolerance"), [(False, 1e-4), (True, 2e-2)])
def test_train(pretend, small, tmp_path, monkeypatch, bf16, tolerance):
    """float32: three steps of a thousand roundings of 6e-8; bfloat16: a loss of a few dozen of 2^-8."""
    from patchrec_fast.train.run import train

    monkeypatch.setattr(operator, "_chosen", lambda impl, device_type, dtype: reference)  # not by the interpreter
    recipe, out = replace(SMALL, bf16=bf16), tmp_path / "gpu"
    train(recipe, "pft-s", model="tiny", data=small / "data", out=out, tokenizer=small / "tokenizer")
    assert pretend.counts()["flex_attention_backward"] > 0  # prompts share rows
    found, expected = losses(out), losses(small / "cpu")
    assert [each[:2] for each in found] == [each[:2] for each in expected]
    assert len({split for split, _, _ in found}) == 2
    for (*_, mine), (*_, theirs) in zip(found, expected, strict=True):
        assert abs(mine - theirs) <= tolerance * theirs
