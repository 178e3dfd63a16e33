# SPDX-License-Identifier: Apache-2.0
"""The rows that all prompts begin with are read once a call, and nothing else changes.

The reference is a call for each user alone, which shares nothing; `test_beam.py` compares that with transformers.
"""

import copy
import sys
from types import ModuleType

import numpy as np
import pytest
import torch

import patchrec_fast as pf
from patchrec_fast.hf import attention
from tests.hf.test_attention import brute

METHODS = ["beam", "exact", "diverse"]


def with_prefix(sample, tokens, policy=None):
    """A packer whose prompts begin with these tokens."""
    prompt = copy.copy(sample.prompt)
    prompt.prefix = np.asarray(tokens, np.int32)
    return pf.Packer(sample.catalogue, prompt, policy or pf.SessionPatches(3), max_items=12)


def assert_shared_as_alone(rec, histories, batch_size=2, **options):
    together = rec.recommend(histories, k=5, batch_size=batch_size, **options)
    for user, history in enumerate(histories):
        alone = rec.recommend([history], k=5, **options)
        np.testing.assert_array_equal(together.items[user], alone.items[0])
        np.testing.assert_allclose(together.scores[user], alone.scores[0], atol=1e-4)


def read_by(call, rec, *args):
    """How many rows of prompts the model reads in a call, and what that returns."""
    rows = []

    def count(model, args, kwargs):
        if "cu_seq_lens_q" in kwargs:
            rows.append(kwargs["position_ids"].numel())

    hook = rec.model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        found = call(rec, *args)
    finally:
        hook.remove()
    return sum(rows), found


CALLS = {method: lambda rec, h, b, m=method: rec.recommend(h, k=3, method=m, batch_size=b) for method in METHODS}
CALLS["scores"] = lambda rec, h, b: rec.scores(h, normalize="catalogue", batch_size=b)
CALLS["rank"] = lambda rec, h, b: rec.rank(h, [1] * len(h), normalize="catalogue", batch_size=b)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("name", CALLS)
def test_what_the_model_reads(recommender, histories, name, batch_size):
    packer = recommender.packer
    whole, saved = len(packer.pack(histories).position_ids), (len(histories) - 1) * len(packer.prompt.prefix)
    read, found = read_by(CALLS[name], recommender, histories, batch_size)
    assert read == whole - saved
    if name in METHODS:
        assert found.rows == whole


def test_one_user_reads_a_whole_prompt(recommender, histories):
    read, found = read_by(CALLS["beam"], recommender, histories[:1], 16)
    assert read == found.rows == len(recommender.packer.pack(histories[:1]).position_ids)


def test_a_batch_that_does_not_fit_leaves_nothing_behind(make_model, packer, histories):
    """Memory runs out in the second layer, when the first has kept its keys already."""
    model = make_model()
    rec = pf.Recommender(model, packer)
    expected = rec.recommend(histories, k=4)
    failures = [1]

    def fail(module, args):
        if failures:
            failures.pop()
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.warns(UserWarning, match="halving the batch"):
        found = rec.recommend(histories, k=4)
    np.testing.assert_array_equal(found.items, expected.items)


WINDOWS = [7, 43, 60, 4096]  # shorter than the prefix, as long, longer, and longer than any prompt


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("qwen3", {"num_key_value_heads": 1}),
        ("gemma2", {}),
        ("gemma3", {}),
        *(("mistral", {"sliding_window": window}) for window in WINDOWS),
        *(("gemma2", {"sliding_window": window}) for window in WINDOWS[1:3]),
    ],
)
def test_families(make_model, packer, histories, family, options):
    assert_shared_as_alone(pf.Recommender(make_model(family, **options), packer), histories)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_methods_in_batches_of_one(make_model, packer, histories, family, method):
    assert_shared_as_alone(pf.Recommender(make_model(family), packer), histories, batch_size=1, method=method)


def test_scores(recommender, histories):
    table = recommender.scores(histories, batch_size=2)
    alone = np.concatenate([recommender.scores([history]) for history in histories])
    np.testing.assert_allclose(table, alone, atol=1e-4)


@pytest.mark.parametrize("length", [0, 1, 2, 600])
def test_prefixes_of_any_length(make_model, sample, histories, length):
    """Up to more keys than the CPU's kernel takes a mask for."""
    packer = with_prefix(sample, np.arange(length) % 50)
    assert_shared_as_alone(pf.Recommender(make_model(), packer), histories)


def test_other_policies(make_model, sample, histories):
    for policy in (pf.Text(), pf.ItemPatches(keep=2)):
        rec = pf.Recommender(make_model(), with_prefix(sample, sample.prompt.prefix, policy))
        assert_shared_as_alone(rec, histories)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_bfloat16(make_model, packer, histories, family):
    """Sharing rounds in other places, and no more: the error against float64 is that of users alone, half as much
    again for the luck of the maximum over 5 * 300 scores."""
    exact = pf.Recommender(make_model(family).double(), packer).scores(histories)
    rec = pf.Recommender(make_model(family).bfloat16(), packer)
    together = rec.scores(histories, batch_size=2)
    alone = np.concatenate([rec.scores([history]) for history in histories])
    assert np.abs(together - exact).max() <= 1.5 * np.abs(alone - exact).max()


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_masked(make_model, packer, histories, family):
    model = make_model(family)
    expected = pf.Recommender(make_model(family), packer).recommend(histories, k=5, batch_size=2)
    pf.attach(model, "masked")
    found = pf.Recommender(model, packer).recommend(histories, k=5, batch_size=2)
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_what_a_gpu_kernel_gets(make_model, packer, histories, family, monkeypatch):
    """By brute force in its place: keys of whole prompts, and queries that are the last rows of each."""
    expected = pf.Recommender(make_model(family), packer).recommend(histories, k=5, batch_size=2)

    def kernel(
        query,
        key,
        value,
        bounds,
        bounds_k,
        longest,
        longest_k,
        *,
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
    ):
        assert (bounds.dtype, bounds_k.dtype) == (torch.int32, torch.int32)
        assert (longest, longest_k) == (bounds.diff().max(), bounds_k.diff().max())
        assert (dropout_p, causal, window_size[1]) == (0.0, True, 0)
        window = None if window_size[0] < 0 else window_size[0] + 1
        return brute(query, key, value, bounds, softmax_scale, window, softcap or None, bounds_k)

    package = ModuleType("flash_attn")
    package.flash_attn_varlen_func = kernel
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setattr(attention, "choose", lambda *_, **__: "fa2")
    found = pf.Recommender(make_model(family), packer).recommend(histories, k=5, batch_size=2)
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)


def test_weights_that_change_between_calls(make_model, packer, histories):
    model = make_model()
    rec = pf.Recommender(model, packer)
    rec.recommend(histories, k=3)
    with torch.no_grad():
        model.model.layers[0].self_attn.k_proj.weight.neg_()
    assert_shared_as_alone(rec, histories)


def test_rotations_that_depend_on_the_longest_prompt(make_model, packer, histories):
    """longrope has other frequencies in calls beyond 72 rows: keys of one batch are not another's."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 72}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0], "attention_factor": 1.0}
    lengths = packer.pack(histories).cu_seqlens.diff()
    assert lengths.min() < 72 < lengths.max()
    rec = pf.Recommender(make_model("llama", rope_parameters=rope), packer)
    assert_shared_as_alone(rec, histories, batch_size=1)
