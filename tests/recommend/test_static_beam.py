# SPDX-License-Identifier: Apache-2.0
"""Calls of few shapes give what `beam` gives, ask nothing of the host, and can be replayed as they were recorded.

No GPU is needed: what a CUDA graph holds is the launches of one call over the addresses of that call, and so is a
trace of the operators that one call calls.
"""

import contextlib
import copy
import itertools
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import patchrec_fast as pf
from patchrec_fast.hf import decode_cache
from patchrec_fast.ops.attention.tree_reference import tree_attention
from patchrec_fast.recommend import engine
from patchrec_fast.recommend.search import cuda_graph
from patchrec_fast.recommend.search.static_beam import rounded
from tests.recommend.test_beam import FAMILIES, SETTINGS

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense,
    aten.bincount,
    aten.equal,
    aten.masked_select,
    aten.nonzero,
    aten.repeat_interleave,
    aten.unique_consecutive,
    aten.unique_dim,
    aten._unique2,
}


@pytest.fixture
def unchecked(monkeypatch):
    """The operator as on a GPU, where it reads no value of its offsets."""
    monkeypatch.setattr(decode_cache, "tree_attention", tree_attention)


def both(monkeypatch, rec, histories, **options):
    """By a tree that grows, and by calls of few shapes, which the CPU otherwise never takes."""
    grown = rec.recommend(histories, cuda_graphs=False, **options)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_why_not_static", lambda model, device: None)
        return grown, rec.recommend(histories, cuda_graphs=True, **options)


def assert_same(grown, fixed):
    np.testing.assert_array_equal(fixed.items, grown.items)
    np.testing.assert_allclose(fixed.scores, grown.scores, atol=1e-4, rtol=16 * 2.0**-24)
    np.testing.assert_allclose(fixed.log_probs, grown.log_probs, atol=1e-4, rtol=16 * 2.0**-24)
    np.testing.assert_array_equal(fixed.num_scored, grown.num_scored)
    assert fixed.rows == grown.rows


@pytest.mark.parametrize(("length_penalty", "early_stopping"), [*SETTINGS, (1.0, True)])
def test_every_setting(monkeypatch, recommender, histories, length_penalty, early_stopping):
    options = {"length_penalty": length_penalty, "early_stopping": early_stopping}
    assert_same(*both(monkeypatch, recommender, histories, k=4, beams=6, **options))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(monkeypatch, make_model, packer, histories, family):
    assert_same(*both(monkeypatch, pf.Recommender(make_model(family), packer), histories, k=5))


@pytest.mark.parametrize("normalize", ["vocab", "catalogue", "children"])
@pytest.mark.parametrize("exclude_seen", [False, True])
def test_every_question(monkeypatch, recommender, histories, normalize, exclude_seen):
    options = {"normalize": normalize, "exclude_seen": exclude_seen}
    grown, fixed = both(monkeypatch, recommender, histories, k=5, batch_size=2, **options)
    assert_same(grown, fixed)
    seen = [set(answers) & set(history) for answers, history in zip(fixed.items.tolist(), histories, strict=True)]
    assert not exclude_seen or not any(seen)


@pytest.mark.parametrize("order", [1, -1], ids=["longer", "shorter"])
def test_batches_of_other_lengths(monkeypatch, make_model, sample, histories, order):
    """Prompts that have no room any more, and fewer users than before."""
    rec = pf.Recommender(make_model(), pf.Packer(sample.catalogue, sample.prompt, pf.Text()))
    assert_same(*both(monkeypatch, rec, (histories * 2)[::order], k=3, batch_size=4))


def test_more_answers_than_titles(monkeypatch, recommender, histories):
    monkeypatch.setattr("patchrec_fast.recommend.engine._SMALL", 10**6)  # room for as many beams as there are titles
    grown, fixed = both(monkeypatch, recommender, histories[:2], k=400)
    assert_same(grown, fixed)
    assert (fixed.items[:, -1] == -1).all()


def test_compiled_parts(monkeypatch, make_model, packer, histories):
    """Traced for sizes that change, without a break."""
    model = make_model()
    plain = pf.Recommender(model, packer).recommend(histories, k=5)
    for layer in model.model.layers:
        for part in (layer.mlp, layer.input_layernorm, layer.post_attention_layernorm):
            part.compile(dynamic=True, fullgraph=True, backend="aot_eager")
    _, fixed = both(monkeypatch, pf.Recommender(model, packer), histories, k=5, batch_size=2)
    assert_same(plain, fixed)


def test_one_title(monkeypatch, make_model, sample, histories):
    titles = {7: sample.dataset.titles[7]}
    catalogue = pf.Catalogue.from_titles(titles, sample.tokenizer)
    rec = pf.Recommender(make_model(), pf.Packer(catalogue, sample.prompt, pf.Text()))
    grown, fixed = both(monkeypatch, rec, [[7], [7, 7]], k=3)
    assert_same(grown, fixed)
    assert fixed.items.tolist() == [[7, -1, -1]] * 2


def test_movies(monkeypatch, make_model, movies):
    model = make_model("qwen3", vocab_size=movies.packer.prompt.num_embeddings)
    assert_same(*both(monkeypatch, pf.Recommender(model, movies.packer), movies.histories[:4], k=20, batch_size=2))


class Waits(TorchDispatchMode):
    """Raises where a GPU's host would wait: values or sizes that depend on data."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waits = func.overloadpacket in WAITS
        if func.overloadpacket in (aten.index, aten.index_put, aten.index_put_):
            waits = any(index is not None and index.dtype == torch.bool for index in args[1])
        assert not waits, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [{}, {"normalize": "children", "length_penalty": 1.0, "exclude_seen": True}])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_call_waits_for_nobody(unchecked, monkeypatch, make_model, packer, histories, family, options):
    watched = []

    def call(self, key, function):
        with Waits():
            function()
        watched.append(function.func.__name__)

    monkeypatch.setattr(cuda_graph.CudaGraphs, "__call__", call)
    both(monkeypatch, pf.Recommender(make_model(family), packer), histories, k=5, **options)
    assert set(watched) == {"_read", "_choose"}


@pytest.mark.parametrize("wait", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.nonzero()])
def test_waiting_is_seen(wait):
    with pytest.raises(AssertionError, match="waits for the device"), Waits():
        wait(torch.ones(3))


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3"])
def test_a_recorded_call_serves_all_of_its_size(unchecked, monkeypatch, make_model, packer, histories, family):
    """The operators of the second of a size alone, over and over, for batches of other lengths too."""
    traces, replays = [], []

    def call(self, key, function):
        if key not in self._graphs:
            self._graphs[key] = None
            return function()
        if self._graphs[key] is None:
            self._graphs[key] = recorded(function)
            traces.append(function.func.__name__)
        else:
            replays.append(function.func.__name__)
        return self._graphs[key]()

    monkeypatch.setattr(cuda_graph.CudaGraphs, "__call__", call)
    rec = pf.Recommender(make_model(family), packer)
    options = {"k": 5, "batch_size": 2, "exclude_seen": True}
    grown, fixed = both(monkeypatch, rec, histories[::-1] + histories[1:], **options)
    assert_same(grown, fixed)
    assert set(traces) == set(replays) == {"_read", "_choose"}


def recorded(function):
    """The step as a list of operators; made without changing what the step changes."""

    def step():
        function()
        return torch.zeros(())

    changed = changing(function.func.__self__)
    before = copy.deepcopy(changed)
    trace = make_fx(step)()
    for tensor, old in zip(changed, before, strict=True):
        tensor.copy_(old)
    return trace


def changing(search):
    """The tensors that a step changes."""
    trees = itertools.chain(*search.cache._tree.layers.values())
    held = [*vars(search).values(), *vars(search.cache).values(), *search._done, *trees]
    return [value for value in held if isinstance(value, torch.Tensor)]


class Stream:
    device = torch.device("cuda")

    def __init__(self, calls):
        self.wait_stream = lambda other: calls.append("wait")


@pytest.fixture
def cuda(monkeypatch):
    """cuda(capture): CUDA's calls, listed, and the current stream; `capture` is what `torch.cuda.graph` is."""

    def pretend(capture):
        calls = []
        current = [Stream(calls)]
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(calls))
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[-1])
        monkeypatch.setattr(torch.cuda, "set_stream", current.append)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: calls.append("replay")))
        monkeypatch.setattr(torch.cuda, "graph", contextlib.contextmanager(partial(capture, calls, current)))
        return calls, current

    return pretend


ASIDE = ["wait", "run", "wait"]


@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize("works", [False, True])
def test_what_is_asked_of_cuda(cuda, works, required):
    """One run aside, one capture, replays, of each function; and what happens where the capture fails."""

    def capture(calls, current, graph, pool, stream, capture_error_mode):
        assert pool == "pool"
        calls.append("capture")
        current.append(stream)
        yield
        if not works:
            raise RuntimeError("operation not permitted when stream is capturing")  # and the stream stays, as torch's

    calls, current = cuda(capture)
    before = current[-1]
    graphs = cuda_graph.CudaGraphs(torch.device("cuda"), required)
    for key in "ab":
        graphs(key, lambda: calls.append("run"))
    assert calls == ASIDE * 2
    calls.clear()
    if works:
        for key in "aabab":
            graphs(key, lambda: calls.append("run"))
        captured = ["capture", "run", "replay"]
        assert calls == [*captured, "replay", *captured, "replay", "replay"]
    elif required:
        with pytest.raises(RuntimeError, match=r"cuda_graphs=True: .* cannot be captured .* not permitted"):
            graphs("a", lambda: calls.append("run"))
    else:
        with pytest.warns(UserWarning, match="launched from Python"):
            graphs("a", lambda: calls.append("run"))
        for key in "ab":  # nothing is tried again
            graphs(key, lambda: calls.append("run"))
        assert calls == ["capture", "run", *ASIDE * 3]
    assert current[-1] is before


def test_no_memory_for_a_capture(cuda):
    """Is for who halves the batch, and no reason to go on without."""

    def capture(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")
        yield

    cuda(capture)
    graphs = cuda_graph.CudaGraphs(torch.device("cuda"))
    graphs("a", lambda: None)
    with pytest.raises(torch.OutOfMemoryError):
        graphs("a", lambda: None)


@pytest.mark.parametrize("seed", range(5))
def test_beams_that_come_and_go(monkeypatch, make_model, sample, histories, seed):
    """Random catalogues: short chains and long ones, beams that die within them; widths up to all titles."""
    rng = np.random.default_rng(seed)
    words = [sample.dataset.titles[item] for item in sorted(sample.dataset.titles)[:12]]
    titles = {n: " ".join(rng.choice(words, rng.integers(1, 4))) for n in range(1, 30)}
    catalogue = pf.Catalogue.from_titles(titles, sample.tokenizer)
    rec = pf.Recommender(make_model(), pf.Packer(catalogue, sample.prompt, pf.Text()))
    some = [rng.integers(1, 30, rng.integers(1, 5)).tolist() for _ in range(5)]
    monkeypatch.setattr("patchrec_fast.recommend.engine._SMALL", 10**6)
    for beams in (1, 4, 29):
        options = {"k": min(beams, 4), "beams": beams, "length_penalty": float(seed % 2)}
        assert_same(*both(monkeypatch, rec, some, batch_size=3, **options))


def test_sizes_are_few_and_large_enough():
    for count in range(1, 5000):
        size = rounded(count)
        assert count <= size <= max(16, count * 3 // 2)
    assert len({rounded(count) for count in range(1, 5000)}) == 18


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU serves")
def test_graphs_that_are_asked_for_need_a_gpu(recommender, histories):
    with pytest.raises(RuntimeError, match="cuda_graphs=True cannot serve this call: the model is on cpu"):
        recommender.recommend(histories, cuda_graphs=True)


def test_only_beams_have_graphs(recommender, histories):
    with pytest.raises(ValueError, match="only method='beam' has them, got 'exact'"):
        recommender.recommend(histories, method="exact", cuda_graphs=True)
