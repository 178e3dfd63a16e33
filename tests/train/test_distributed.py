# SPDX-License-Identifier: Apache-2.0
"""Two processes on the CPU train as one: stock Trainer (DDP) and FSDP2, each rank with its own random patches."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.train import ranks

ROOT = Path(__file__).parents[2]


def in_two_processes(module, folder):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", module, str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return in_two_processes("tests.train.ranks", tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("how", ["ddp-prompt", "ddp-user", "fsdp2-prompt"])
def test_a_stock_trainer_trains_as_one_process(folder, sample, tiny, tmp_path, how):
    if not (folder / f"{how}-0.npz").exists():
        pytest.skip("this transformers cannot train a model sharded when it is loaded")
    expected = ranks.with_trainer(sample, 1, tmp_path, tiny(), how.partition("-")[2])
    found = [np.load(folder / f"{how}-{rank}.npz") for rank in range(2)]
    assert [list(part["seen"]) for part in found] == [list(expected["seen"][rank::2]) for rank in range(2)]
    for name in expected:
        if name != "seen":
            np.testing.assert_allclose(found[0][name], expected[name], rtol=1e-5, atol=1e-5)
            np.testing.assert_array_equal(found[0][name], found[1][name])
    assert expected["losses"][0] != expected["losses"][3]


@pytest.mark.parametrize("by", ["prompt", "user"])
def test_fsdp2_by_hand_has_the_gradients_of_one_process(folder, sample, by):
    expected = ranks.gradients(sample, 1, 0, by)
    for rank in range(2):
        found = np.load(folder / f"gradients-{by}-{rank}.npz")
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)


def test_zero3_has_the_gradients_of_one_process(sample, tmp_path):
    pytest.importorskip("deepspeed")
    in_two_processes("tests.train.zero3", tmp_path)
    expected = ranks.gradients(sample, 1, 0)
    for rank in range(2):
        found = np.load(tmp_path / f"zero3-{rank}.npz")
        assert found["whole"] == 0
        assert found["fused"]
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)
