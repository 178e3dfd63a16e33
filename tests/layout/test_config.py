# SPDX-License-Identifier: Apache-2.0
"""The file beside a model that says how its prompts are made."""

import json

import numpy as np
import pytest

import patchrec_fast as pf
from patchrec_fast import data
from patchrec_fast.layout.config import FILE, POLICIES, PromptConfig

ARGUMENTS = {"ItemPatches": 5, "SessionPatches": 3, "RandomItemPatches": 0.25, "Dropout": 0.5}


def settings(**changes):
    return PromptConfig(**{"instruction": "Seen [HISTORY_SEQUENCE]. Next?", **changes})


@pytest.mark.parametrize("name", POLICIES)
def test_what_is_saved_is_loaded(name, tmp_path):
    policy = POLICIES[name](*([ARGUMENTS[name]] if name in ARGUMENTS else []))
    before = settings(system="Räte.", separators=False, policy=policy, max_items=None)
    before.save(tmp_path)
    assert PromptConfig.load(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_its_packer_is_the_one_written_out():
    titles = data.generate(users=4, items=30).titles
    ours = settings(policy=pf.ItemPatches(2), max_items=4).packer(titles, data.sample_tokenizer(titles.values()))
    tokenizer = data.sample_tokenizer(titles.values())
    prompt = pf.Prompt(tokenizer, instruction="Seen [HISTORY_SEQUENCE]. Next?")
    theirs = pf.Packer(pf.Catalogue.from_titles(titles, tokenizer), prompt, pf.ItemPatches(2), 4)
    histories = [list(titles)[:7], list(titles)[9:12]]
    assert np.array_equal(ours.pack(histories).ids, theirs.pack(histories).ids)
    assert np.array_equal(ours.pack(histories).offsets[1], theirs.pack(histories).offsets[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": {"name": "Best"}}, "Best"),
        ({"policy": {"name": "ItemPatches", "keep": -1}}, "keep"),
        ({"polcy": 1}, "polcy"),
        ({"instruction": None}, "instruction"),
    ],
)
def test_a_wrong_entry_is_named(change, message, tmp_path):
    settings().save(tmp_path)
    fields = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps({**fields, **change}))
    with pytest.raises(ValueError, match=message):
        PromptConfig.load(tmp_path)


def test_a_file_cut_short_and_a_missing_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=FILE):
        PromptConfig.load(tmp_path)
    settings().save(tmp_path)
    (tmp_path / FILE).write_text((tmp_path / FILE).read_text()[:20])
    with pytest.raises(ValueError, match=FILE):
        PromptConfig.load(tmp_path)


def test_a_policy_of_ones_own_cannot_be_written():
    class Mine:
        def assign(self, lengths, rng):
            return pf.Text().assign(lengths, rng)

    with pytest.raises(TypeError, match="policy"):
        settings(policy=Mine())
