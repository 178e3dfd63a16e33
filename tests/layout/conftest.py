# SPDX-License-Identifier: Apache-2.0
"""A catalogue and a prompt of the generated sample, for tests that need no outside file."""

from types import SimpleNamespace

import pytest

from patchrec_fast import data
from patchrec_fast.layout import Catalogue, Prompt

SYSTEM = "You are a helpful assistant in movie recommendations."
INSTRUCTION = "A user has watched [HISTORY_SEQUENCE]. Please recommend one movie."


@pytest.fixture(scope="session")
def sample():
    """The generated dataset with its tokenizer, catalogue and prompt."""
    pytest.importorskip("tokenizers")
    dataset = data.generate(users=60, items=1500)
    tokenizer = data.sample_tokenizer(dataset.titles.values())
    return SimpleNamespace(
        dataset=dataset,
        catalogue=Catalogue.from_titles(dataset.titles, tokenizer),
        prompt=Prompt(tokenizer, system=SYSTEM, instruction=INSTRUCTION),
        tokenizer=tokenizer,
    )
