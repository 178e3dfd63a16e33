# SPDX-License-Identifier: Apache-2.0
"""The generated dataset: its statistics, and that it is the same every time and everywhere."""

import os
import subprocess
import sys

import numpy as np
import pytest

from patchrec_fast.data import generate, sample_tokenizer

HASH = """
import hashlib
from patchrec_fast.data import generate, sample_tokenizer
d = generate(seed=3, users=40, items=300)
tokenizer = sample_tokenizer(d.titles.values())
parts = [d.items.tobytes(), d.offsets.tobytes(), repr(d.titles).encode()]
parts += [d.splits[k].tobytes() for k in sorted(d.splits)]
parts += [tokenizer.backend_tokenizer.to_str().encode(), tokenizer.chat_template.encode()]
print(hashlib.sha256(b"".join(parts)).hexdigest())
"""


@pytest.fixture(scope="module")
def dataset():
    return generate()


@pytest.fixture(scope="module")
def tokenizer(dataset):
    pytest.importorskip("tokenizers")
    pytest.importorskip("transformers")
    return sample_tokenizer(dataset.titles.values())


def test_the_same_in_every_process():
    hashes = {
        subprocess.run(
            [sys.executable, "-c", HASH],
            env={**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, threads in (("1", "1"), ("2", "2"))
    }
    assert len(hashes) == 1


def test_the_seed_matters(dataset):
    assert generate(users=20).titles != generate(seed=1, users=20).titles
    assert generate(users=20).items.tolist() == generate(users=20).items.tolist()


def test_lengths_like_movielens(dataset):
    lengths = np.diff(dataset.offsets)
    assert len(dataset) == 1000
    assert lengths[0] == lengths.max() == 1435
    assert (lengths == 1435).sum() == 1
    assert lengths.min() >= 4
    assert 85 < lengths.mean() < 105  # MovieLens-1M: 95.3
    assert 50 < np.median(lengths) < 66  # 58


def test_popularity_like_movielens(dataset):
    """The commonest tenth of the items: 55 % of the interactions in MovieLens-1M."""
    counts = np.sort(np.bincount(dataset.items, minlength=len(dataset.titles)))[::-1]
    assert 0.45 < counts[: len(counts) // 10].sum() / counts.sum() < 0.60
    assert counts[0] < 0.7 * len(dataset)  # nobody likes everything


def test_nobody_has_an_item_twice(dataset):
    for items in np.split(dataset.items, dataset.offsets[1:-1]):
        assert len(np.unique(items)) == len(items)


def test_titles(dataset, tokenizer):
    titles = list(dataset.titles.values())
    assert len(set(titles)) == len(titles) == 2000
    encoded = tokenizer(titles, add_special_tokens=False)["input_ids"]
    lengths = np.array([len(tokens) for tokens in encoded])
    assert lengths.min() == 1
    assert 12 <= lengths.max() <= 19  # MovieLens-1M: 1 to 19, mean 3.94
    assert 3.3 < lengths.mean() < 4.5
    prefixes = {tuple(t[:n]) for t in encoded for n in range(1, len(t))}
    assert sum(tuple(t) in prefixes for t in encoded) > 20  # titles that begin other titles


def test_splits_partition_every_sequence_in_time(dataset):
    lengths = np.diff(dataset.offsets)
    counts = {}
    expected = np.zeros(len(dataset), int)  # where the next split of a user begins
    for name in ("train", "val", "test"):
        first, last = dataset.splits[name].T
        some = first >= 0
        assert (last[~some] == -1).all()
        assert (first[some] == expected[some]).all()
        expected[some] = last[some] + 1
        counts[name] = (last - first + 1)[some].sum()
    assert (expected == lengths).all()
    shares = np.array(list(counts.values())) / len(dataset.items)
    assert shares == pytest.approx([0.96, 0.02, 0.02], abs=0.001)


def test_samples(dataset):
    for name in ("train", "val", "test"):
        (flat, offsets), targets = dataset.split(name)
        assert len(targets) == len(offsets) - 1 > 1000
        assert np.diff(offsets).max() == 100
        assert np.isin(flat, list(dataset.titles)).all()


def test_small_catalogues_cap_the_longest_user():
    dataset = generate(users=5, items=12)
    assert np.diff(dataset.offsets).max() == 12
    assert len(generate(users=1)) == 1


def test_tokenizer(tokenizer):
    assert len(tokenizer) < 2100
    for text in ("Any text", "café — 愛 🎬\n", "  spaces  "):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
    names = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    assert [tokenizer.encode(name)[1:] for name in names] == [[tokenizer.convert_tokens_to_ids(name)] for name in names]
    assert tokenizer.encode("")[0] == tokenizer.bos_token_id
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)


def test_chat_template(tokenizer):
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": " U "}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, date_string="today")
    assert text == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nDate: today\n\nS<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [({"users": 0}, "users: expected at least 1, got 0"), ({"items": 9}, "items: .* 10, got 9")],
)
def test_bad_sizes(given, message):
    with pytest.raises(ValueError, match=message):
        generate(**given)


def test_data_stands_alone():
    """It imports nothing else from the package, nor anything heavy."""
    code = (
        "import sys; before = set(sys.modules); import patchrec_fast.data; "
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"transformers", "tokenizers", "pyarrow", "pandas", "triton"} & set(loaded)
