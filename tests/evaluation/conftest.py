# SPDX-License-Identifier: Apache-2.0
"""A recommender without a language model: what it recommends can be foretold."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import patchrec_fast as pf
from patchrec_fast import data
from patchrec_fast.layout.histories import flatten
from patchrec_fast.models.fingerprint import of_model, of_packer


class Clockwork:
    """Recommends the items whose ids follow the newest one; `calls` are the batches it was asked for.

    Args:
        packer: whose catalogue has the ids 0 to I - 1.
        fail_at: the call that raises KeyboardInterrupt, as a killed run does.
    """

    def __init__(self, packer, fail_at=None):
        self.packer, self.catalogue = packer, packer.catalogue
        self.model = torch.nn.Linear(2, 2)
        torch.nn.init.ones_(self.model.weight)
        self.fail_at = fail_at
        self.calls = []

    engine = contextlib.nullcontext

    def fingerprint(self):
        return {**of_model(self.model), **of_packer(self.packer)}

    def rank(self, histories, targets):
        raise AssertionError("nobody has asked for ranks")

    def recommend(self, histories, k=20, method="beam", *, batch_size=16, step=1):
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        flat, offsets = flatten(histories)
        self.calls.append(len(offsets) - 1)
        items = (flat[offsets[1:] - 1, None] + step * np.arange(1, k + 1)) % len(self.packer.catalogue)
        items[:, len(self.packer.catalogue) - 1 :] = -1  # fewer exist
        seconds = {"pack": 0.25, "prompt": 0.5, "decode": 1.0}
        return SimpleNamespace(items=items.astype(np.int64), seconds=seconds, rows=10 * (len(offsets) - 1))


@pytest.fixture(scope="session")
def sample():
    """40 users and 300 items, two of which share a title."""
    dataset = data.generate(users=40, items=300)
    dataset.titles[7] = dataset.titles[5]
    return dataset


@pytest.fixture(scope="session")
def packer(sample):
    tokenizer = data.sample_tokenizer(sample.titles.values())
    catalogue = pf.Catalogue.from_titles(sample.titles, tokenizer)
    return pf.Packer(catalogue, pf.Prompt(tokenizer, instruction="Seen [HISTORY_SEQUENCE]."), pf.SessionPatches(5), 50)


@pytest.fixture
def clockwork(packer):
    def make(**options):
        torch.manual_seed(0)
        return Clockwork(packer, **options)

    return make
