# SPDX-License-Identifier: Apache-2.0
"""One long title among short ones: the same answers, and memory that grows with the tokens read."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import patchrec_fast as pf
from patchrec_fast.recommend import engine, state
from patchrec_fast.recommend.paths import Paths
from tests.recommend.test_static_beam import both

METHODS = ["beam", "diverse"]


@pytest.fixture(scope="module")
def long(sample):
    """Titles of up to 130 tokens, some of which share 80, one of which begins another."""
    titles = {item: sample.dataset.titles[item] for item in range(1, 12)}
    shared = " ".join(["7"] * 40)
    titles |= {100 + n: f"{shared} {n} " + f"{n} " * (12 * n) for n in range(3)}
    titles |= {200: shared, 201: f"x {shared}"}
    catalogue = pf.Catalogue.from_titles(titles, sample.tokenizer)
    assert np.diff(catalogue.offsets).max() > 100
    return pf.Packer(catalogue, sample.prompt, pf.SessionPatches(3), max_items=12)


HISTORIES = [[1, 3, 100], [5], [201, 7, 2, 9]]


@pytest.mark.parametrize(
    ("family", "options"),
    [("llama", {}), ("qwen3", {"num_key_value_heads": 1}), ("gemma2", {}), ("mistral", {"sliding_window": 40})],
)
def test_log_probabilities_are_those_of_the_table(make_model, long, family, options):
    """`scores` reads no chains. All titles are answers, so the long ones are among them."""
    model = make_model(family, initializer_range=0.2, **options)
    rec = pf.Recommender(model, long)
    table = rec.scores(HISTORIES)
    for method in METHODS:
        found = rec.recommend(HISTORIES, k=16, method=method)
        place = long.catalogue.index(found.items[found.items >= 0])
        user = np.nonzero(found.items >= 0)[0]
        assert {100, 101, 102, 200, 201} & set(found.items[0].tolist())
        np.testing.assert_allclose(found.log_probs[found.items >= 0], table[user, place], rtol=1e-5, atol=1e-3)


def test_chains_as_rows(monkeypatch, make_model, long):
    """As if no chain were long, and with paths gathered for few rows at a time."""
    rec = pf.Recommender(make_model(initializer_range=0.2), long)
    found = [rec.recommend(HISTORIES, k=16, method=method) for method in METHODS]
    monkeypatch.setattr(state, "_LONG", 10**6)
    monkeypatch.setattr("patchrec_fast.ops.attention.tree_cpu._GATHERED", 1 << 14)
    for method, mine in zip(METHODS, found, strict=True):
        other = rec.recommend(HISTORIES, k=16, method=method)
        np.testing.assert_array_equal(mine.items, other.items)
        np.testing.assert_allclose(mine.log_probs, other.log_probs, rtol=1e-5, atol=1e-3)
        np.testing.assert_array_equal(mine.num_scored, other.num_scored)


@pytest.mark.parametrize("deepest", [3, 64, 65, 300])
@pytest.mark.parametrize("seed", range(5))
def test_paths(deepest, seed):
    """Of random trees, against lists."""
    rng, users = np.random.default_rng(seed), 3
    paths, known = Paths(users, deepest, torch.device("cpu")), [[] for _ in range(users)]
    while len(known) < 400:
        above = rng.integers(max(0, len(known) - 40), len(known), 6)
        chains = [(int(at), int(rng.integers(1, 90))) for at in above]
        chains = [(at, min(rows, deepest - len(known[at]))) for at, rows in chains if len(known[at]) < deepest]
        if not chains:
            chains = [(0, 1)]
        old, columns = len(known), []
        for at, rows in chains:
            first = len(known)
            known += [known[at] + list(range(first, first + step + 1)) for step in range(rows)]
            columns += [(at, first, step) for step in range(rows)]
        depth = paths.add(*torch.tensor(columns).T)
        assert depth.tolist() == [len(path) for path in known[old:]]
        some = torch.from_numpy(rng.integers(0, len(known), 20))
        longest = max(1, max(len(known[row]) for row in some.tolist()))
        expected = [known[row] + [-1] * (longest - len(known[row])) for row in some.tolist()]
        assert paths.of(some, longest).tolist() == expected


MEASURED = """
import resource, sys
import torch
import patchrec_fast as pf
from patchrec_fast import data
from transformers import LlamaConfig, LlamaForCausalLM
titles = {item: f"Film {item}" for item in range(50)}
tokenizer = data.sample_tokenizer(titles.values())
catalogue = pf.Catalogue.from_titles(titles | {99: "x" + " 7" * int(sys.argv[1])}, tokenizer)
prompt = pf.Prompt(tokenizer, instruction="Seen [HISTORY_SEQUENCE]. Next?")
sizes = dict(hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4)
model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=prompt.num_embeddings, max_position_embeddings=4096)).eval()
rec = pf.Recommender(model, pf.Packer(catalogue, prompt, pf.Text()))
rec.recommend([[1, 2, 3]] * 8, k=20, method="exact")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rec.recommend([[1, 2, 3]] * 8, k=20)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units")
def test_memory():
    """1,000 tokens for each of 8 users: their keys, values, hidden states and what a call needs beside; gathered paths
    were 8 GB."""
    made = subprocess.run([sys.executable, "-c", MEASURED, "500"], capture_output=True, text=True, check=True)
    assert int(made.stdout) < 300


def test_steps_of_one_shape_have_no_room_for_it(monkeypatch, make_model, long, recommender):
    """The growing search answers, or the caller hears why."""
    rec = pf.Recommender(make_model(initializer_range=0.2), long)
    expected = rec.recommend(HISTORIES, k=12, cuda_graphs=False)
    monkeypatch.setattr(engine, "_why_not_static", lambda model, device: None)
    monkeypatch.setattr(engine, "StaticCache", None)
    monkeypatch.setattr(engine, "_SMALL", 0)
    monkeypatch.setattr(engine, "_EMPTY", 1)
    np.testing.assert_array_equal(rec.recommend(HISTORIES, k=12).items, expected.items)
    with pytest.raises(RuntimeError, match=r"cuda_graphs=True cannot serve this call: .* longest title"):
        rec.recommend(HISTORIES, k=12, cuda_graphs=True)


def test_room_for_few_rows_is_given(monkeypatch, make_model, long):
    rec = pf.Recommender(make_model(initializer_range=0.2), long)
    grown, fixed = both(monkeypatch, rec, HISTORIES, k=5)
    np.testing.assert_array_equal(grown.items, fixed.items)
