# SPDX-License-Identifier: Apache-2.0
"""Recommending on the pretended device: the CPU's titles and scores, and how often a search waits."""

import contextlib
from functools import partial

import numpy as np
import pytest
import torch

import patchrec_fast as pf
from patchrec_fast import data
from patchrec_fast.hf.kv_cache import KVCache
from patchrec_fast.ops.attention import tree
from patchrec_fast.ops.compress import operator, reference
from patchrec_fast.ops.log_sum_exp import log_sum_exp
from patchrec_fast.recommend import lm_head
from tests.recommend.conftest import histories, make_model, packer, sample  # noqa: F401

FAMILIES = ["llama", "mistral", "gemma2"]
CLOSE = {"atol": 1e-4, "rtol": 0}  # float32 log-probabilities of a title, sums of some ten


@pytest.fixture(scope="module")
def pair(_pretended, make_model, packer):  # noqa: F811
    """pair(family): the same recommender on the CPU and on the device."""
    made = {}

    def build(family):
        if family not in made:
            made[family] = tuple(pf.Recommender(make_model(family).to(where), packer) for where in ("cpu", "cuda"))
        return made[family]

    return build


@pytest.fixture
def plain(monkeypatch):
    """The operators by torch's own functions, not by Triton's slow interpreter: `test_with_the_kernels` has those."""
    monkeypatch.setattr(operator, "_chosen", lambda impl, device_type, dtype: reference)
    monkeypatch.setattr(tree, "choose", lambda impl, device_type, dtype: "cpu" if device_type == "cpu" else "reference")
    monkeypatch.setattr(lm_head, "log_sum_exp", partial(log_sum_exp, impl="reference"))


def assert_same(found, expected):
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_allclose(found.scores, expected.scores, **CLOSE)
    np.testing.assert_array_equal(found.num_scored, expected.num_scored)


@pytest.mark.parametrize("graphs", [True, False, None])
@pytest.mark.parametrize("family", FAMILIES)
def test_beams(pretend, plain, pair, packer, histories, family, graphs):  # noqa: F811
    """Three batches of a call; what has run before for as many rows is a graph, one launch."""
    cpu, gpu = pair(family)
    some = packer.catalogue.item_ids[::2]
    for options in (
        {"beams": 5},
        {"exclude_seen": True, "normalize": "children", "length_penalty": 1.0, "allow": some},
    ):
        expected = cpu.recommend(histories, k=5, batch_size=2, **options)
        pretend.reset()
        assert_same(gpu.recommend(histories, k=5, batch_size=2, cuda_graphs=graphs, **options), expected)
        assert ("graph" in pretend.counts()) == (graphs is not False)


@pytest.mark.parametrize("method", ["exact", "diverse", "scores", "rank"])
@pytest.mark.parametrize("family", FAMILIES)
def test_other_methods(pretend, plain, pair, histories, family, method):  # noqa: F811
    cpu, gpu = pair(family)
    some = histories[:3]
    if method == "scores":
        np.testing.assert_allclose(gpu.scores(some), cpu.scores(some), **CLOSE)
    elif method == "rank":
        np.testing.assert_array_equal(gpu.rank(some, [1, 5, 9]), cpu.rank(some, [1, 5, 9]))
    else:
        options = {"k": 3, "method": method, "batch_size": 2}
        assert_same(gpu.recommend(some, **options), cpu.recommend(some, **options))
        options |= {"exclude_seen": True, "deny": range(0, 300, 3)}
        assert_same(gpu.recommend(some, **options), cpu.recommend(some, **options))


@pytest.mark.parametrize("graphs", [True, False])
def test_users_who_return(pretend, plain, make_model, sample, graphs):  # noqa: F811
    """Their rows come back, from the device and from host memory; a visit reads fewer, and answers the same."""
    policy = pf.SessionPatches(2, anchor="oldest")
    packer = pf.Packer(sample.catalogue, sample.prompt, policy, max_items=12, step=6)  # noqa: F811
    items = sample.dataset.items[: sample.dataset.offsets[1]].tolist() * 2
    visits = [[items[: n + u] for u in range(3)] for n in (5, 6, 8)]
    cpu, gpu = (pf.Recommender(make_model("llama").to(where), packer) for where in ("cpu", "cuda"))
    room = 2 * 4 * 120 * 2 * 8 * 2  # some 120 rows of the model's keys and values: not all users'
    cache, options = KVCache(room, host_bytes=1 << 20), {"k": 3, "batch_size": 2}
    with gpu.engine(cache):
        for visit in visits:
            found = gpu.recommend(visit, users=["a", "b", "c"], cuda_graphs=graphs, **options)
            assert_same(found, cpu.recommend(visit, **options))
    assert 0 < cache.bytes <= room
    assert cache.bytes_on_host > 0
    assert cache.rows_reused > cache.rows_read


@pytest.mark.parametrize("graphs", [True, False])
def test_a_batch_that_does_not_fit_is_halved(pretend, plain, pair, histories, graphs):  # noqa: F811
    cpu, gpu = pair("llama")
    expected = cpu.recommend(histories, k=5)
    gpu.recommend(histories[:1], k=5)
    allocated = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    gpu.recommend(histories, k=5, cuda_graphs=graphs)
    needed = torch.cuda.max_memory_allocated() - allocated
    with pretend.memory_of(needed * 3 // 4), pytest.warns(UserWarning, match="halving the batch"):
        assert_same(gpu.recommend(histories, k=5, cuda_graphs=graphs), expected)


@contextlib.contextmanager
def waiting(model):
    """Inside, a layer asks the device something."""
    hook = model.model.layers[0].register_forward_hook(lambda module, args, out: float(out[0].sum()) and None)
    try:
        yield
    finally:
        hook.remove()


def test_a_step_that_waits_cannot_be_a_graph(pretend, plain, pair, histories):  # noqa: F811
    """It is launched from Python, with a warning; the stream, left aside by the capture, is the caller's again."""
    cpu, gpu = pair("llama")
    expected, stream = cpu.recommend(histories, k=5), torch.cuda.current_stream()
    asked = {"k": 5, "batch_size": 2}  # a call is captured at its second use
    with waiting(gpu.model), pytest.warns(UserWarning, match=r"cannot be captured as a CUDA graph.*from Python"):
        assert_same(gpu.recommend(histories, **asked), expected)
    assert torch.cuda.current_stream() is stream
    with waiting(gpu.model), pytest.raises(RuntimeError, match=r"cuda_graphs=True: .* cannot be captured"):
        gpu.recommend(histories, cuda_graphs=True, **asked)
    assert torch.cuda.current_stream() is stream
    assert_same(gpu.recommend(histories, cuda_graphs=True, **asked), expected)


def test_evaluate(pretend, plain, pair, sample):  # noqa: F811
    """Ranks, and the device's name in the report's header."""
    cpu, gpu = pair("llama")
    histories, targets = sample.dataset.split("test", max_items=12)  # noqa: F811
    part = histories[0][: histories[1][3]], histories[1][:4]
    cpu, gpu = (pf.evaluate(each, (part, targets[:3]), ks=(5,), progress=False) for each in (cpu, gpu))
    assert gpu.ranks == cpu.ranks
    assert gpu.users == cpu.users


def tiny_packer():
    """Five short titles, and short prompts: the interpreter takes a millisecond an instruction."""
    dataset = data.generate(users=40, items=300)
    tokenizer = data.sample_tokenizer(dataset.titles.values())
    short = sorted(dataset.titles, key=lambda item: (len(tokenizer(dataset.titles[item]).input_ids), item))[:5]
    catalogue = pf.Catalogue.from_titles({item: dataset.titles[item] for item in short}, tokenizer)
    return pf.Packer(catalogue, pf.Prompt(tokenizer, instruction="[HISTORY_SEQUENCE]?"), pf.SessionPatches(1))


def test_with_the_kernels(pretend, make_model):  # noqa: F811
    """Triton's programs, launched and replayed; and every wait of a call, as they are: a new one fails here.

    With a graph they are around the search: the prompts' tensors, copied, and the answers.
    """
    packer = tiny_packer()  # noqa: F811
    items = packer.catalogue.item_ids.tolist()
    histories = [items[:1], items[:3]]  # noqa: F811
    cpu, gpu = (pf.Recommender(make_model("llama").to(where), packer) for where in ("cpu", "cuda"))
    expected = cpu.recommend(histories, k=2, beams=2)
    with gpu.engine():
        for _ in range(3):  # the search may be done after a step or two, and the third is captured
            gpu.recommend(histories, k=2, beams=2, cuda_graphs=True)
        pretend.reset()
        assert_same(gpu.recommend(histories, k=2, beams=2, cuda_graphs=True), expected)
        counts, waits = pretend.counts(), pretend.waits()
    assert counts["sum_rows"] == 1
    assert 0 < counts["graph"] <= 2 * (gpu.trie.depth - 1)  # one that reads, one that chooses
    assert "read_prompts" not in counts  # inside the graph
    assert waits == {
        "aten::bincount": 1,
        "copy to the device": 2,
        "copy to the host": 6,
        "item": 1,
        "synchronize": 3,  # one for each part that is timed
    }
    pretend.reset()
    assert_same(gpu.recommend(histories, k=2, beams=2, cuda_graphs=False), expected)
    assert pretend.counts()["read_prompts"] > 0
    assert pretend.waits() == {
        "aten::_unique2": 1,
        "aten::bincount": 3,
        "aten::nonzero": 3,
        "aten::repeat_interleave of an unknown size": 1,
        "copy to the device": 8,
        "copy to the host": 4,
        "item": 6,
        "synchronize": 3,
    }


def test_a_token_is_one_wait(pretend, plain, pair, histories):  # noqa: F811
    """For how many rows there are, three numbers in one copy; a longer search has more of these, and no other."""
    _, gpu = pair("llama")
    found = []
    with gpu.engine():
        for k in (2, 2, 2, 8, 8, 8):  # the third of each finds its graphs
            pretend.reset()
            gpu.recommend(histories[:2], k=k, beams=k, cuda_graphs=True)
            found.append((pretend.counts()["graph"], pretend.waits()))
    (few, short), (many, long) = found[2], found[5]
    assert many != few
    more = {name: times - short[name] for name, times in long.items() if times != short[name]}
    assert set(more) == {"copy to the host"}, (short, long)
    assert abs(many - few) // 2 <= abs(more["copy to the host"]) <= abs(many - few)  # a token is one graph or two
