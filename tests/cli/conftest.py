# SPDX-License-Identifier: Apache-2.0
"""A model folder and a data folder as `patchrec-fast train` and `patchrec-fast data` leave them, without training."""

from pathlib import Path
from typing import NamedTuple

import pytest

from patchrec_fast import SessionPatches, data
from patchrec_fast.layout.config import PromptConfig
from patchrec_fast.models.tiny import tiny_model

INSTRUCTION = "Seen [HISTORY_SEQUENCE]. Next?"


class Folders(NamedTuple):
    model: Path
    data: Path
    dataset: data.Dataset

    @property
    def flags(self):
        return ["--model", str(self.model), "--data", str(self.data)]


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    pytest.importorskip("pyarrow")
    dataset = data.generate(users=40, items=300)
    model, tokenizer = tiny_model(
        dataset.titles,
        data.sample_tokenizer(dataset.titles.values()),
        instruction=INSTRUCTION,
        hidden=32,
        layers=2,
        heads=4,
    )
    root = tmp_path_factory.mktemp("trained")
    made = Folders(root / "model", root / "data", dataset)
    data.save(dataset, made.data)
    model.save_pretrained(made.model)
    tokenizer.save_pretrained(made.model)
    PromptConfig(INSTRUCTION, policy=SessionPatches(5), max_items=50).save(made.model)
    return made
