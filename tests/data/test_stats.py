# SPDX-License-Identifier: Apache-2.0
"""Table 1."""

import numpy as np
import pytest

from patchrec_fast.data import Dataset, generate, load, statistics


class Words:
    """A tokenizer that counts words."""

    def __call__(self, texts, add_special_tokens, split_special_tokens):
        assert not add_special_tokens
        assert split_special_tokens
        return {"input_ids": [text.split() for text in texts]}


def test_small():
    splits = {
        "train": np.array([[0, 4], [0, 0]]),
        "val": np.array([[5, 5], [-1, -1]]),
        "test": np.array([[-1, -1]] * 2),
    }
    dataset = Dataset(
        np.array([1, 2, 3, 4, 1, 2, 1], np.int32),
        np.array([0, 6, 7]),
        {1: "one", 2: "two words", 3: "two words", 4: "one", 9: "never used at all"},
        splits,
    )
    assert statistics(dataset, Words()) == {
        "users": 2,
        "items": 5,
        "items_used": 4,
        "interactions": 7,
        "longest": 6,
        "mean_length": 3.5,
        "shared_titles": 4,
        "train": {"samples": 2, "users": 1, "mean_history": 3.5, "longest_history": 4},
        "val": {"samples": 1, "users": 1, "mean_history": 5.0, "longest_history": 5},
        "test": {"samples": 0, "users": 0, "mean_history": 0.0, "longest_history": 0},
        "tokens_per_title": 10 / 5,
        "tokens_per_interaction": 10 / 7,
    }
    assert "tokens_per_title" not in statistics(dataset)


@pytest.mark.parametrize("seed", range(5))
def test_splits_against_their_samples(seed):
    dataset = generate(seed, users=30, items=60)
    for name, found in ((name, statistics(dataset)[name]) for name in dataset.splits):
        histories, targets = dataset.split(name, max_items=None)
        lengths = np.diff(histories[1])
        with_some = sum(len(dataset_of(dataset, user, name)) > 0 for user in range(len(dataset)))
        assert found == {
            "samples": len(targets),
            "users": with_some,
            "mean_history": pytest.approx(lengths.mean() if len(lengths) else 0),
            "longest_history": lengths.max(initial=0),
        }


def dataset_of(dataset, user, name):
    """The targets of one user."""
    flat = dataset.items[dataset.offsets[user] : dataset.offsets[user + 1]]
    splits = {name: dataset.splits[name][user : user + 1]}
    return Dataset(flat, [0, len(flat)], dataset.titles, splits).split(name).targets


# Table 1 of the paper, but for the users of ML-1M, of which it prints 6,037
PAPER = {
    "ml-100k": (682, 1_682, 51_824, 378, 75.99, 3.86),
    "ml-1m": (6_038, 3_883, 575_281, 1_435, 95.28, 3.94),
    "goodreads": (2_090, 8_793, 162_539, 430, 77.77, 9.82),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_table(name, data_dir, tokenizer):
    found = statistics(load(data_dir / name), tokenizer)
    keys = ("users", "items", "interactions", "longest", "mean_length", "tokens_per_title")
    assert tuple(round(found[key], 2) for key in keys) == PAPER[name]
