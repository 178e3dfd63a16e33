# SPDX-License-Identifier: Apache-2.0
"""The dtype that a saved model has on a device."""

import argparse

import pytest
import torch

from patchrec_fast.cli import models


@pytest.mark.parametrize(
    ("place", "saved", "asked", "expected"),
    [
        ("cpu", "float32", None, "float32"),
        ("meta", "float32", None, "bfloat16"),
        ("meta", "float16", None, "float16"),
        ("meta", "float32", "float32", "float32"),
    ],
)
def test_float32_goes_to_a_gpu_in_bfloat16_unless_asked(monkeypatch, capsys, place, saved, asked, expected):
    monkeypatch.setattr(models, "device", torch.device)

    class Model(torch.nn.Linear):
        dtype = property(lambda self: self.weight.dtype)

    model = Model(2, 2, dtype=getattr(torch, saved))
    made = models.placed(model, argparse.Namespace(device=place, dtype=asked))
    assert (made.weight.device.type, made.weight.dtype) == (place, getattr(torch, expected))
    assert ("--dtype float32" in capsys.readouterr().err) == (saved != expected)
