# SPDX-License-Identifier: Apache-2.0
"""Calls of one model from several threads give what serial calls give, and leave the model as it was.

`PATCHREC_FAST_THREAD_CALLS=1000` makes so many calls a thread; the default takes seconds.
"""

import asyncio
import copy
import multiprocessing
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from threading import Event

import numpy as np
import pytest
import torch

import patchrec_fast as pf
from patchrec_fast.hf.attach import is_attached
from patchrec_fast.hf.kv_cache import KVCache

THREADS = 8
CALLS = int(os.environ.get("PATCHREC_FAST_THREAD_CALLS", "3"))
KINDS = [
    lambda rec, user: rec.recommend([user], k=3).items.tolist(),
    lambda rec, user: rec.recommend([user], k=3, exclude_seen=True).items.tolist(),
    lambda rec, user: rec.recommend([user], k=2, method="exact", exclude_seen=True).items.tolist(),
    lambda rec, user: rec.recommend([user], k=3, method="diverse").items.tolist(),
    lambda rec, user: rec.scores([user], normalize="catalogue").argmax(1).tolist(),
    lambda rec, user: rec.rank([user], [user[0]], normalize="catalogue").tolist(),
]


@pytest.fixture
def small(make_model, sample):
    """A model and a packer whose calls take milliseconds."""
    titles = {item: title for item, title in sample.dataset.titles.items() if item <= 40}
    catalogue = pf.Catalogue.from_titles(titles, sample.tokenizer)
    return make_model(num_hidden_layers=1), pf.Packer(catalogue, sample.prompt, pf.SessionPatches(2), max_items=8)


USERS = [[1 + (user * 7 + place * 5) % 40 for place in range(1 + user % 6)] for user in range(10)]


def state(model):
    head = vars(model.get_output_embeddings()).get("forward")
    modes = [module.training for module in model.modules()]
    return head, model.config._attn_implementation, len(model._forward_pre_hooks), modes


@pytest.mark.parametrize("attached", [False, True], ids=["plain", "attached"])
@pytest.mark.parametrize("engine", [False, True], ids=["each", "engine"])
def test_threads_get_what_serial_calls_get(small, attached, engine):
    model, packer = small
    if attached:
        pf.attach(model)
    recs = [pf.Recommender(model, packer), pf.Recommender(model, packer)]
    expected = {(kind, user): KINDS[kind](recs[0], USERS[user]) for kind in range(len(KINDS)) for user in range(10)}
    before = state(model)

    def calls(thread):
        rng, wrong = np.random.default_rng(thread), []
        for _ in range(CALLS):
            kind, user = int(rng.integers(len(KINDS))), int(rng.integers(10))
            rec = recs[int(rng.integers(2))]
            with rec.engine() if rng.random() < 0.3 else nullcontext():
                found = KINDS[kind](rec, USERS[user])
            if found != expected[kind, user]:
                wrong.append((kind, user, found))
        return wrong

    with recs[0].engine() if engine else nullcontext(), ThreadPoolExecutor(THREADS) as pool:
        assert not [wrong for each in pool.map(calls, range(THREADS)) for wrong in each]
    assert state(model) == before


@torch.no_grad()
def test_other_calls_of_the_model_beside(small):
    """Ordinary, generating and packed ones, of an attached model, and recommenders that are made meanwhile."""
    model, packer = small
    pf.attach(model)
    rec, ids = pf.Recommender(model, packer), torch.arange(12)[None]
    batch = packer.pack(USERS, targets=[user[0] for user in USERS]).model_inputs()
    others = [
        lambda: model(input_ids=ids).logits,
        lambda: model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0),
        lambda: model(**batch).loss,
        lambda: torch.tensor(pf.Recommender(model, packer).recommend([USERS[3]], k=3).items),
    ]
    expected, done = [other() for other in others], Event()

    def beside(which):
        results = []
        while not done.is_set():
            with torch.no_grad():
                results.append(others[which]())
        return results

    with ThreadPoolExecutor(len(others)) as pool:
        running = [pool.submit(beside, which) for which in range(len(others))]
        serial = rec.recommend(USERS, k=3).items
        try:
            for _ in range(2 * CALLS):
                np.testing.assert_array_equal(rec.recommend(USERS, k=3).items, serial)
        finally:
            done.set()
        for future, wanted in zip(running, expected, strict=True):
            assert future.result()
            for found in future.result():
                torch.testing.assert_close(found, wanted)


def test_in_an_executor_of_asyncio(small):
    model, packer = small
    rec = pf.Recommender(model, packer)
    expected = [rec.recommend([user], k=3).items.tolist() for user in USERS]

    async def serve():
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(None, KINDS[0], rec, user) for user in USERS))

    assert asyncio.run(serve()) == expected


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("engine", [False, True])
def test_an_error_in_the_middle(small, error, engine):
    """Leaves the model as it was, its lock free, and nothing half made for the next call."""
    model, packer = small
    model.train()
    rec = pf.Recommender(model, packer)
    expected, before, calls = rec.recommend(USERS, k=3).items, state(model), []

    def fail(module, args):
        calls.append(1)
        if len(calls) == 3:
            raise error("in the middle")

    with rec.engine() if engine else nullcontext():
        rec.recommend(USERS, k=3)
        hook = model.model.layers[0].register_forward_pre_hook(fail)
        with pytest.raises(error, match="in the middle"):
            rec.recommend(USERS, k=3, batch_size=4)
        hook.remove()
        assert state(model) == before
        with ThreadPoolExecutor(1) as pool:
            np.testing.assert_array_equal(pool.submit(rec.recommend, USERS, 3).result(timeout=60).items, expected)


@pytest.mark.parametrize("engine", [False, True])
def test_a_call_inside_a_call(small, engine):
    model, packer = small
    rec = pf.Recommender(model, packer)
    expected, inside = rec.recommend(USERS, k=3, exclude_seen=True).items, []

    def again(module, args):
        hook.remove()
        inside.append(rec.recommend(USERS[::-1], k=3, exclude_seen=True).items)

    with rec.engine() if engine else nullcontext():
        for _ in range(2):
            hook = model.model.layers[0].register_forward_pre_hook(again)
            np.testing.assert_array_equal(rec.recommend(USERS, k=3, exclude_seen=True).items, expected)
    np.testing.assert_array_equal(np.stack(inside), np.stack([expected[::-1]] * 2))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda rec: pickle.loads(pickle.dumps(rec))])
def test_copies(small, copied):
    """Also made inside `engine`, which the copy is not in."""
    model, packer = small
    rec = pf.Recommender(model, packer)
    expected = rec.recommend(USERS, k=3).items
    with rec.engine():
        rec.recommend(USERS, k=3)
        other = copied(rec)
        np.testing.assert_array_equal(other.recommend(USERS, k=3).items, expected)
        with torch.no_grad():
            other.model.model.layers[0].self_attn.k_proj.weight.neg_()
        changed = other.recommend(USERS, k=3)
        np.testing.assert_array_equal(rec.recommend(USERS, k=3).items, expected)
    np.testing.assert_allclose(changed.scores, pf.Recommender(other.model, packer).recommend(USERS, k=3).scores)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_forked_in_the_middle_of_a_call(small):
    model, packer = small
    rec = pf.Recommender(model, packer)
    expected, reached, go = rec.recommend(USERS, k=3).items.tolist(), Event(), Event()

    def wait(module, args):
        reached.set()
        go.wait(60)

    hook = model.model.layers[0].register_forward_pre_hook(wait)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()

    def child():
        hook.remove()
        answers.put((model(input_ids=torch.arange(4)[None]).logits.shape[-1], rec.recommend(USERS, k=3).items.tolist()))

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(rec.recommend, USERS, 3)
        assert reached.wait(60)
        process = context.Process(target=child)
        process.start()
        try:
            assert answers.get(timeout=60) == (model.config.vocab_size, expected)
        finally:
            go.set()
            process.join(60)
        assert running.result().items.tolist() == expected
    hook.remove()


def test_blocks_that_overlap_end_with_the_last(small):
    model, packer = small
    rec = pf.Recommender(model, packer)
    first, second = rec.engine(), rec.engine()
    first.__enter__()
    rec.recommend(USERS, k=3)
    second.__enter__()
    first.__exit__(None, None, None)
    rec.recommend(USERS, k=3)
    second.__exit__(None, None, None)
    with torch.no_grad():
        model.model.layers[0].self_attn.k_proj.weight.neg_()
    expected = pf.Recommender(model, packer).recommend(USERS, k=3)
    np.testing.assert_array_equal(rec.recommend(USERS, k=3).scores, expected.scores)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.double(),
        lambda model: model.load_state_dict({name: 2 * value for name, value in model.state_dict().items()}),
        lambda model: model.model.layers[0].self_attn.k_proj.weight.data.neg_(),
        lambda model: model.model.embed_tokens.weight.data.mul_(2),
    ],
    ids=["dtype", "weights", "a layer's data", "the embedding's data"],
)
def test_a_change_inside_an_engine_is_seen(small, change):
    model, packer = small
    rec, cache = pf.Recommender(model, packer), KVCache(1 << 30)
    with rec.engine(cache):
        rec.recommend(USERS, k=3, users=range(len(USERS)))
        change(model)
        found = rec.recommend(USERS, k=3, users=range(len(USERS)))
    expected = pf.Recommender(model, packer).recommend(USERS, k=3)
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)


def test_attaching_waits_for_a_call(small):
    model, packer = small
    rec, reached, go = pf.Recommender(model, packer), Event(), Event()

    def wait(module, args):
        reached.set()
        go.wait(60)

    hook = model.model.layers[0].register_forward_pre_hook(wait)
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(rec.recommend, USERS, 3)
        assert reached.wait(60)
        attaching = pool.submit(pf.attach, model)
        assert not attaching.done()
        hook.remove()
        go.set()
        running.result(timeout=60)
        handle = attaching.result(timeout=60)
    assert is_attached(model)
    handle.detach()
    assert not is_attached(model)
