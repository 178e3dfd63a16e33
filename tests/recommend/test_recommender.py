# SPDX-License-Identifier: Apache-2.0
"""What a caller sees: small and awkward catalogues, seen items, errors, memory, the model left alone."""

import contextlib
import copy
import sys

import numpy as np
import pytest
import torch

import patchrec_fast as pf
from patchrec_fast import _ranges, data
from patchrec_fast.recommend import Trie
from patchrec_fast.recommend import engine as module
from tests.recommend import decoders

METHODS = ["beam", "exact", "diverse"]


def small(sample, make_model, titles):
    catalogue = pf.Catalogue.from_titles(titles, sample.tokenizer)
    return pf.Recommender(make_model(), pf.Packer(catalogue, sample.prompt, pf.Text()))


@pytest.mark.parametrize("method", METHODS)
def test_one_item(sample, make_model, method):
    found = small(sample, make_model, {4: "Jaws"}).recommend([[4]], k=3, method=method)
    expected = [4, 4, 4] if method == "diverse" else [4, -1, -1]
    assert found.items.tolist() == [expected]
    assert found.titles() == [["Jaws"] * (found.items >= 0).sum()]
    assert np.isneginf(found.log_probs[found.items < 0]).all()


@pytest.mark.parametrize("method", ["beam", "exact"])
def test_answers_in_own_ids(sample, make_model, method):
    titles = {1: "Jaws", 2: "Jaws 2", 4: "Alien"}
    own = {1: "b-1", 2: "007", 4: "é"}
    ids = data.Ids(own, own.values())
    catalogue = pf.Catalogue.from_titles(titles, sample.tokenizer, ids)
    found = pf.Recommender(make_model(), pf.Packer(catalogue, sample.prompt, pf.Text())).recommend(
        [[ids.find("007"), 4], [1]], k=5, method=method
    )
    assert found.ids() == [[own[item] for item in user if item >= 0] for user in found.items.tolist()]
    assert [sorted(user) for user in found.ids()] == [sorted(own.values())] * 2
    plain = small(sample, make_model, titles).recommend([[1]], k=5, method=method)
    assert plain.ids() == [plain.items[0, :3].tolist()]


@pytest.mark.parametrize("method", ["beam", "exact"])
def test_more_answers_than_titles(sample, make_model, method):
    """All titles, among them one that begins another and one that two items share."""
    titles = {1: "Jaws", 2: "Jaws 2", 3: "Jaws", 4: "Alien", 5: "Jaws 3-D"}
    found = small(sample, make_model, titles).recommend([[1, 2], [4]], k=10, method=method)
    for items, log_probs in zip(found.items, found.log_probs, strict=True):
        assert sorted(items[:4]) == [1, 2, 4, 5]
        assert (items[4:] == -1).all()
        assert (np.diff(log_probs[:4]) <= 0).all()
    assert sorted(found.titles()[0]) == ["Alien", "Jaws", "Jaws 2", "Jaws 3-D"]


@pytest.mark.parametrize("method", METHODS)
def test_seen_titles_are_left_out(recommender, histories, method):
    found = recommender.recommend(histories, k=8, method=method, exclude_seen=True)
    for user, history in enumerate(histories):
        assert not set(found.items[user].tolist()) & set(history)
        assert (found.items[user] >= 0).all()


def test_seen_titles_are_left_out_and_no_others(recommender, histories):
    everything = recommender.recommend(histories, k=40, method="exact")
    unseen = recommender.recommend(histories, k=15, method="exact", exclude_seen=True)
    for user, history in enumerate(histories):
        expected = [item for item in everything.items[user].tolist() if item not in history][:15]
        assert unseen.items[user].tolist() == expected


def test_a_shared_title_is_its_first_unseen_item(sample, make_model):
    """And goes when all its items are seen."""
    rec = small(sample, make_model, {1: "Jaws", 2: "Jaws", 3: "Jaws 2", 4: "Alien"})
    found = rec.recommend([[1, 1], [2], [2, 1], [1, 2, 3, 4]], k=4, method="exact", exclude_seen=True)
    expected = [[-1, 2, 3, 4], [-1, 1, 3, 4], [-1, -1, 3, 4], [-1] * 4]
    assert [sorted(items) for items in found.items.tolist()] == expected


@pytest.mark.parametrize("method", METHODS)
def test_everything_seen(sample, make_model, method):
    found = small(sample, make_model, {1: "Jaws", 2: "Jaws 2"}).recommend(
        [[1, 2], [1]], k=2, method=method, exclude_seen=True
    )
    assert found.items[0].tolist() == [-1, -1]
    assert found.items[1, 0] == 2


@pytest.mark.parametrize("normalize", ["catalogue", "children"])
def test_beam_under_other_shares(recommender, histories, normalize):
    """With a beam for every title it is exact."""
    count = len(decoders.titles(recommender.packer))
    beam = recommender.recommend(histories, k=5, beams=count, normalize=normalize)
    exact = recommender.recommend(histories, k=5, method="exact", normalize=normalize)
    np.testing.assert_allclose(beam.scores, exact.scores, atol=1e-4)


def test_histories_as_arrays_and_in_batches(recommender, histories):
    flat = np.concatenate(histories)
    offsets = np.cumsum([0, *map(len, histories)])
    whole = recommender.recommend((flat, offsets), k=5)
    parts = recommender.recommend(histories, k=5, batch_size=2)
    np.testing.assert_array_equal(whole.items, parts.items)
    assert whole.rows == parts.rows == int(recommender.packer.pack(histories).cu_seqlens[-1])
    assert len(whole) == 5
    assert whole.seconds.keys() == {"pack", "prompt", "decode"}
    assert min(whole.seconds.values()) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k: expected at least 1, got 0"),
        ({"method": "greedy"}, "method must be 'beam', 'exact' or 'diverse', got 'greedy'"),
        ({"normalize": "all"}, "normalize must be one of 'vocab', 'catalogue', 'children', got 'all'"),
        ({"early_stopping": "always"}, "early_stopping must be False, True or 'never', got 'always'"),
        ({"beams": 3, "k": 5}, "beams: expected at least 5, got 3"),
        ({"beams": 30, "method": "exact"}, "beams: method='exact' has none, got 30"),
        ({"length_penalty": 1.0, "method": "exact"}, "length_penalty: method='exact' orders by log-probability"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"length_penalty": 1e6}, "length_penalty: expected a number between -.* and .*, got 1000000"),
        ({"length_penalty": -1e6, "method": "diverse"}, "length_penalty: expected a number between"),
        ({"length_penalty": float("nan")}, "length_penalty: expected a number between .* got nan"),
        ({"length_penalty": float("inf")}, "length_penalty: expected a number between .* got inf"),
        (
            {"diversity_penalty": float("nan"), "method": "diverse"},
            "diversity_penalty: expected a number between 0 and",
        ),
        (
            {"diversity_penalty": float("inf"), "method": "diverse"},
            "diversity_penalty: expected a number between 0 and",
        ),
        ({"diversity_penalty": -1, "method": "diverse"}, "diversity_penalty: expected a number between 0 and 1000"),
        ({"early_stopping": 1}, "early_stopping must be False, True or 'never', got 1"),
        ({"early_stopping": True, "method": "exact"}, "early_stopping: only method='beam' has it"),
    ],
)
def test_option_errors(recommender, histories, options, message):
    with pytest.raises(ValueError, match=message):
        recommender.recommend(histories, **options)


def test_history_errors(recommender):
    with pytest.raises(ValueError, match="user at place 1 has no items"):
        recommender.recommend([[1], []])
    with pytest.raises(ValueError, match="12345 is not in the catalogue"):
        recommender.recommend([[12345]])
    with pytest.raises(ValueError, match="got no users"):
        recommender.recommend([])


def test_model_errors(make_model, packer):
    with pytest.raises(ValueError, match=r"logits do not cover the titles' token .*resize_token_embeddings"):
        pf.Recommender(make_model(vocab_size=100), packer)
    with pytest.raises(TypeError, match="Linear has no output embeddings"):
        pf.Recommender(torch.nn.Linear(1, 1), packer)
    model = make_model()
    plain = model.forward

    def doubled(*args, **kwargs):
        out = plain(*args, **kwargs)
        return type(out)(logits=2 * out.logits)

    model.forward = doubled
    with pytest.raises(ValueError, match="changes its logits after the output embedding"):
        pf.Recommender(model, packer)


def test_trie_of_another_catalogue(make_model, sample, packer):
    other = Trie.from_catalogue(pf.Catalogue.from_titles({1: "Jaws"}, sample.tokenizer), sample.prompt.end_of_turn)
    with pytest.raises(ValueError, match="another catalogue or tokenizer"):
        pf.Recommender(make_model(), packer, other)
    own = Trie.from_catalogue(packer.catalogue, packer.prompt.end_of_turn)
    assert pf.Recommender(make_model(), packer, own).trie is own


@pytest.mark.parametrize("attached", [False, True])
def test_the_model_is_left_as_it_was(make_model, packer, histories, attached):
    model = make_model().train()
    model.model.layers[0].eval()
    rec = pf.Recommender(model, packer)
    handle = pf.attach(model) if attached else None
    head = vars(model.get_output_embeddings()).get("forward")
    state, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    implementation, hooks = model.config._attn_implementation, len(model._forward_pre_hooks)
    rec.recommend(histories, k=3)
    assert [module.training for module in model.modules()] == modes
    assert (model.config._attn_implementation, len(model._forward_pre_hooks)) == (implementation, hooks)
    assert vars(model.get_output_embeddings()).get("forward") == head
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    if handle is not None:
        handle.detach()


def test_attached_with_a_foreign_attention(make_model, packer, histories):
    model = make_model()
    rec = pf.Recommender(model, packer)
    pf.attach(model, "sdpa")
    with pytest.raises(ValueError, match="attached already"):
        rec.recommend(histories)


def test_training_goes_on_afterwards(make_model, packer, histories):
    """Nothing that inference made is in the way of autograd."""
    model = make_model()
    pf.attach(model)
    pf.Recommender(model, packer).recommend(histories, k=2)
    model(**packer.pack(histories, targets=[1] * len(histories)).model_inputs()).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_batch_that_does_not_fit_is_halved(recommender, histories, monkeypatch):
    expected = recommender.recommend(histories, k=4).items
    sizes, reader = [], module.DecodeState

    def scarce(model, head, trie, batch, *args):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return reader(model, head, trie, batch, *args)

    monkeypatch.setattr(module, "DecodeState", scarce)
    with pytest.warns(UserWarning, match="users at once do not fit into memory; halving") as warned:
        found = recommender.recommend(histories, k=4)
    assert [str(warning.message)[0] for warning in warned] == ["5", "3"]
    np.testing.assert_array_equal(found.items, expected)
    assert sizes == [5, 2, 3, 1, 2]


def test_one_user_that_does_not_fit(recommender, histories, monkeypatch):
    def empty(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "DecodeState", empty)
    with pytest.raises(torch.OutOfMemoryError):
        recommender.recommend(histories[:1])
    assert recommender.model.config._attn_implementation == "sdpa"


def test_an_engine_serves_the_next_call(make_model, packer, histories):
    """The beginning of the prompts is read once for all calls, and the answers are those of calls alone."""
    rec = pf.Recommender(make_model(), packer)
    alone = [rec.recommend([history], k=4) for history in histories]
    with rec.engine():
        together = [rec.recommend([history], k=4) for history in histories]
        closed = rec.recommend(histories, k=4, exclude_seen=True)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.items, other.items)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
        assert one.rows == other.rows
        assert set(one.seconds) == set(other.seconds)
    prefix = len(packer.prompt.prefix)
    assert [one.rows - one.rows_read for one in together] == [0, *[prefix] * (len(histories) - 1)]
    np.testing.assert_array_equal(closed.items, rec.recommend(histories, k=4, exclude_seen=True).items)


def test_an_engine_ends(make_model, packer, histories):
    """A model that changes afterwards is read anew, also where what was inside failed."""
    rec = pf.Recommender(make_model(), packer)

    def fails():
        with rec.engine():
            rec.recommend(histories, k=4)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    with torch.no_grad():
        for parameter in rec.model.parameters():
            parameter.mul_(0.5)
    np.testing.assert_array_equal(
        rec.recommend(histories, k=4).items, pf.Recommender(rec.model, packer).recommend(histories, k=4).items
    )


def test_the_parts_are_named(make_model, packer, histories, monkeypatch):
    """In the order in which they begin; on CUDA as NVTX ranges."""
    seen = []

    def note(part, device):
        seen.append(part)
        return contextlib.nullcontext()

    monkeypatch.setattr(module, "named", note)
    monkeypatch.setattr(sys.modules["patchrec_fast.hf.attach"], "named", note)
    pf.Recommender(make_model(), packer).recommend(histories[:2], k=2)
    assert seen == ["pack", "prompt", "compress", "decode"]


def test_names_are_ranges_on_cuda(monkeypatch):
    opened = []
    monkeypatch.setattr(torch.cuda.nvtx, "range", lambda name: opened.append(name) or contextlib.nullcontext())
    for device in ("cpu", "cuda"):
        with _ranges.named("decode", torch.device(device)):
            pass
    assert opened == ["patchrec_fast decode"]


@pytest.mark.parametrize(
    "dtype",
    [np.uint8, np.int8, np.uint16, np.int32, np.uint64, torch.uint8, torch.int16, torch.int64, "mixed", "object"],
)
def test_ids_of_every_integer_type(recommender, dtype):
    """Histories, targets and items to rank, alone, together and as one flat array."""
    ids, expected = [[1, 120, 3], [2, 7]], recommender.recommend([[1, 120, 3], [2, 7]], k=3)

    def typed(values):
        if dtype == "mixed":
            return [[np.uint64, int, np.int8, torch.tensor][at % 4](value) for at, value in enumerate(values)]
        if dtype == "object":
            return np.array(values, object)
        return torch.tensor(values, dtype=dtype) if isinstance(dtype, torch.dtype) else np.array(values, dtype)

    found = recommender.recommend([typed(history) for history in ids], k=3)
    np.testing.assert_array_equal(found.items, expected.items)
    if dtype != "mixed":
        flat = recommender.recommend((typed([1, 120, 3, 2, 7]), typed([0, 3, 5])), k=3)
        np.testing.assert_array_equal(flat.items, expected.items)
    np.testing.assert_array_equal(recommender.trie.leaf_of(typed([7, 120])), recommender.trie.leaf_of([7, 120]))
    report = pf.evaluate(recommender, (ids, typed([7, 120])), ks=(3,), progress=False)
    assert report.ranks == pf.evaluate(recommender, (ids, [7, 120]), ks=(3,), progress=False).ranks


@pytest.mark.parametrize(
    ("odd", "error", "message"),
    [
        ([True, 2], TypeError, r"expected integers, got True \(bool\)"),
        ([1, np.True_], TypeError, r"expected integers, got np\.True_"),
        (np.array([True, False]), TypeError, "expected integers, got bool"),
        (torch.tensor([True]), TypeError, r"expected integers, got torch\.bool"),
        (torch.tensor([1.0], dtype=torch.bfloat16), TypeError, r"expected integers, got torch\.bfloat16"),
        ([np.uint64(1), 2.5], TypeError, "expected integers, got float64"),
        ([1, None], TypeError, r"expected integers, got None"),
        ([-1], ValueError, "expected no negative number, got -1"),
        (np.array([2**63 + 1], np.uint64), ValueError, r"expected numbers up to 2\*\*63 - 1, got 9223372036854775809"),
        ([1, 2**63], ValueError, r"expected numbers up to 2\*\*63 - 1, got 9223372036854775808"),
        ([1, 2**70], ValueError, r"expected numbers up to 2\*\*63 - 1, got 1180591620717411303424"),
    ],
)
def test_ids_that_are_none(recommender, odd, error, message):
    """The message names the argument."""
    calls = [
        ("histories", lambda: recommender.recommend([[1], odd])),
        ("targets", lambda: recommender.rank([[1]] * len(odd), odd)),
        ("targets", lambda: pf.evaluate(recommender, ([[1]] * len(odd), odd), progress=False)),
        ("item_ids", lambda: recommender.trie.remove(odd)),
    ]
    for name, call in calls:
        with pytest.raises(error, match=f"{name}: {message}"):
            call()


def test_far_more_answers_than_titles(recommender, histories):
    """As many as there are, and -1 behind them; what no memory holds is refused."""
    titles = len(decoders.titles(recommender.packer))
    for options in ({"method": "exact"}, {"beams": 10**30}):
        found = recommender.recommend(histories[:2], k=titles + 100, batch_size=10**30, **options)
        assert ((found.items >= 0).sum(1) == titles).all()
        assert found.items.shape == found.scores.shape == found.log_probs.shape == (2, titles + 100)
        for k in (10**9, 10**30):
            with pytest.raises(ValueError, match="k: expected at most 10000, got 10"):
                recommender.recommend(histories, k=k, **{**options, "beams": None})
    small = recommender.recommend(histories[:2], k=np.int8(100), batch_size=np.uint8(200), method="exact")
    np.testing.assert_array_equal(small.items, found.items[:, :100])
