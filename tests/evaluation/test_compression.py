# SPDX-License-Identifier: Apache-2.0
"""The three countings: by hand, on the sample, and the published numbers on the real data."""

import numpy as np
import pytest

from patchrec_fast import data
from patchrec_fast.evaluation import Compression, catalogue_ratio, compression, measure_compression
from patchrec_fast.layout import (
    Catalogue,
    Dropout,
    ItemPatches,
    Packer,
    Prompt,
    RandomItemPatches,
    SessionPatches,
    Text,
)

INSTRUCTION = (
    "A user has {did} [HISTORY_SEQUENCE]. Please recommend one {thing} for this user to {do} next "
    "with its title only and without any explanation."
)
SETS = {
    "ml-1m": ({"thing": "movie", "did": "watched", "do": "watch"}, 5),
    "goodreads": ({"thing": "book", "did": "read", "do": "read"}, 5),
    "ml-100k": ({"thing": "movie", "did": "watched", "do": "watch"}, 20),
}


def catalogue_of(lengths):
    """A catalogue whose titles have these numbers of tokens."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    ids = np.arange(len(lengths))
    return Catalogue(np.zeros(offsets[-1], np.int32), offsets, ids, [f"title {i}" for i in ids])


@pytest.fixture(scope="module")
def small():
    """Ten titles of 1 to 10 tokens, and a prompt of 7 + 5 tokens around them."""
    prompt = object.__new__(Prompt)
    prompt.prefix, prompt.suffix = np.full(7, 1, np.int32), np.full(5, 2, np.int32)
    prompt.separator, prompt.end_of_turn, prompt.num_embeddings = 3, 4, 5
    prompt.separators = True
    return catalogue_of(range(1, 11)), prompt


def test_by_hand(small):
    """Two users of 6 and 3 items, the last 5 kept; titles of 1 + item tokens."""
    catalogue, prompt = small
    histories = [[0, 9, 8, 1, 1, 2], [5, 4, 3]]
    # text: 10 + 9 + 2 + 2 + 3 = 26 tokens and 4 separators; 6 + 5 + 4 = 15 and 2
    text, text_separators = 26 + 15, 4 + 2
    # group 2: [9] [8] [1] 1 2 -> one session, two patches, 2 + 3 tokens; [5] 4 3 -> 1 + 5 + 4
    rows, separators = 3 + 5 + 1 + 9, 4 + 2
    packer = Packer(catalogue, prompt, SessionPatches(2), max_items=5)
    assert measure_compression(packer, histories) == Compression(
        catalogue=5 * 5.5 / (1 + 2 + 2 * 5.5),
        history=text / rows,
        separated=(text + text_separators) / (rows + separators),
        prompt=(text + text_separators + 24) / (rows + separators + 24),
        text_rows=(text + text_separators + 24) / 2,
        rows=(rows + separators + 24) / 2,
        users=2,
    )


def test_catalogue_ratio_by_hand(small):
    catalogue, _ = small
    assert catalogue.mean_tokens == 5.5
    assert catalogue_ratio(Text(), catalogue) == 1
    assert catalogue_ratio(ItemPatches(5), catalogue) == 550 / (95 + 27.5)
    assert catalogue_ratio(SessionPatches(5), catalogue) == 550 / (18 + 5 + 27.5)
    assert catalogue_ratio(SessionPatches(60), catalogue) == 550 / (40 + 330)
    assert catalogue_ratio(RandomItemPatches(1), catalogue, max_items=7) == 5.5
    assert catalogue_ratio(Dropout(1), catalogue) == np.inf


def test_text_saves_nothing(small):
    catalogue, prompt = small
    found = measure_compression(Packer(catalogue, prompt, Text()), [[1, 2, 3]])
    assert found.catalogue == found.history == found.separated == found.prompt == 1
    assert found.text_rows == found.rows


def test_random_policies_are_repeatable(small):
    catalogue, prompt = small
    packer = Packer(catalogue, prompt, RandomItemPatches(0.5))
    histories = [[*range(10)]] * 20
    assert measure_compression(packer, histories, seed=1) == measure_compression(packer, histories, seed=1)
    assert measure_compression(packer, histories, seed=1) != measure_compression(packer, histories, seed=2)


def test_counted_in_parts(small, monkeypatch):
    """More users than are packed at once."""
    catalogue, prompt = small
    packer = Packer(catalogue, prompt, SessionPatches(1))
    histories = [[*range(n)] for n in (3, 1, 10, 4, 7, 2, 9)]
    whole = measure_compression(packer, histories)
    monkeypatch.setattr(compression, "_USERS_AT_ONCE", 3)
    assert measure_compression(packer, histories) == whole


@pytest.fixture(scope="module")
def real(data_dir, tokenizer):
    """set name -> test histories, catalogue, prompt."""

    def get(name):
        words, _ = SETS[name]
        dataset = data.load(data_dir / name)
        prompt = Prompt(
            tokenizer,
            system=f"You are a helpful assistant in {words['thing']} recommendations.",
            instruction=INSTRUCTION.replace("{did}", words["did"])
            .replace("{thing}", words["thing"])
            .replace("{do}", words["do"]),
        )
        catalogue = Catalogue.from_titles(dataset.titles, tokenizer)
        return dataset.split("test").histories, catalogue, prompt

    return get


@pytest.mark.parametrize(
    ("name", "items", "sessions"),
    [("ml-1m", 3.44, 9.23), ("goodreads", 6.81, 13.62), ("ml-100k", 3.38, 3.85)],
)
def test_the_papers_ratios(real, name, items, sessions):
    """PatchRec, Table 2, column CR: equal when rounded to its two decimals."""
    _, catalogue, _ = real(name)
    assert round(catalogue_ratio(ItemPatches(5), catalogue), 2) == items
    assert round(catalogue_ratio(SessionPatches(SETS[name][1]), catalogue), 2) == sessions


@pytest.mark.parametrize(
    ("name", "history", "separated", "prompt", "rows"),
    [
        ("ml-1m", (3.28, 8.52), (2.22, 6.52), (1.90, 3.70), (499, 262, 135)),
        ("goodreads", (6.35, 11.29), (4.27, 9.19), (3.40, 5.60), (882, 260, 158)),
        ("ml-100k", (3.21, 3.32), (2.19, 2.95), (1.86, 2.28), (457, 246, 200)),
    ],
)
def test_an_earlier_count_of_the_real_split(real, name, history, separated, prompt, rows):
    """An earlier, independent count of the test splits, which differs from ours by known rows.

    It has as many separators as units, where ours stand between units (one less a user), and a
    template of 68 tokens and two marks, where the tokenizer's own ids of the whole conversation
    (tests/layout/test_prompt.py) are 71. In all its prompts are one row shorter than ours.
    """
    histories, catalogue, around = real(name)
    template = len(around.prefix) + len(around.suffix)
    assert template == 71
    for place, policy in enumerate((ItemPatches(5), SessionPatches(SETS[name][1]))):
        found = measure_compression(Packer(catalogue, around, policy, max_items=100), histories)
        assert round(found.history, 2) == history[place]
        text, packed = found.text_rows - template, found.rows - template
        assert found.separated == pytest.approx(text / packed, rel=1e-12)
        assert round((text + 1) / (packed + 1), 2) == separated[place]
        assert found.prompt == pytest.approx(found.text_rows / found.rows, rel=1e-12)
        assert round((found.text_rows - 1) / (found.rows - 1), 2) == prompt[place]
        assert round(found.text_rows - 1) == rows[0]
        assert round(found.rows - 1) == rows[place + 1]
