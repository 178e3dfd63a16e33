# SPDX-License-Identifier: Apache-2.0
"""A training run of seconds on the sample, and its weights."""

import torch
from safetensors.torch import load_file

from patchrec_fast.train.recipes import Recipe

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


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
