# SPDX-License-Identifier: Apache-2.0
"""Training by user: every target once an epoch, in batches of the prompts that packing one by one makes."""

import copy
import itertools
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import patchrec_fast as pf
from patchrec_fast import data
from patchrec_fast.hf import attach
from patchrec_fast.train import MicroBatches, passes, stage
from patchrec_fast.train.by_user import Passes, share_of_rows
from patchrec_fast.train.stages import Stage
from patchrec_fast.train.start import of_split

POLICIES = {"text": {}, "pft-i": {"keep": 2}, "pft-s": {"group": 2}}


@pytest.fixture(scope="module")
def small():
    dataset = data.generate(users=30, items=200)
    tokenizer = data.sample_tokenizer(dataset.titles.values())
    prompt = pf.Prompt(tokenizer, instruction="Seen [HISTORY_SEQUENCE]. Next?")
    catalogue = pf.Catalogue.from_titles(dataset.titles, tokenizer)
    packer = pf.Packer(catalogue, prompt, pf.Text(), max_items=10, share=True, step=5)
    return SimpleNamespace(dataset=dataset, packer=packer)


def targets_of(dataset, split):
    """(user, place) of each target."""
    return {
        (user, place)
        for user, (first, last) in enumerate(dataset.splits[split].tolist())
        for place in range(max(first, 3), last + 1)
    }


@pytest.mark.parametrize("most", [1, 3, 64])
def test_each_target_is_in_one_pass(small, most):
    made = passes(small.dataset, "train", most)
    found = [(u, at) for u, a, b in zip(made.user, made.first, made.last, strict=True) for at in range(a, b + 1)]
    assert len(found) == len(set(found)) == made.counts.sum()
    assert set(found) == targets_of(small.dataset, "train")
    sizes = made.last - made.first + 1
    assert sizes.min() >= 1
    assert sizes.max() <= most
    for user in set(made.user.tolist()):
        own = sizes[made.user == user]
        assert own.max() - own.min() <= 1
        assert len(own) == -(-own.sum() // most)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("shape", [{}, {"world_size": 2}, {"accumulation": 3, "epochs": 2}], ids=str)
def test_every_target_once_an_epoch(small, name, shape):
    made = passes(small.dataset, "train", 7)
    batches = MicroBatches(made, small.packer, stage(name, **POLICIES[name]), rows=900, **shape)
    seen = np.concatenate([batches.describe(number).samples for number in range(len(batches))])
    assert batches.left_out == 0
    assert np.bincount(seen).tolist() == [shape.get("epochs", 1)] * len(made.user)
    rows = [batches[number]["position_ids"].shape[1] for number in range(len(batches))]
    assert max(rows) <= 900
    assert np.mean(rows) > 600


@pytest.mark.parametrize("name", [*POLICIES, "pretrain", "dropout"])
def test_rows_are_never_exceeded(small, name):
    made = passes(small.dataset, "train", 5)
    batches = MicroBatches(made, small.packer, stage(name), rows=1200)
    assert max(batches[number]["position_ids"].shape[1] for number in range(len(batches))) <= 1200


def test_the_first_targets_can_be_left_in(small):
    first = {user for user, (a, _) in enumerate(small.dataset.splits["train"].tolist()) if a == 0}
    made = passes(small.dataset, "train", 4, min_position=1)
    assert set(made.user[made.first == 1].tolist()) == first
    assert passes(small.dataset, "train", 4).first.min() == 3


@pytest.mark.parametrize("limit", [1, 2, 7, 100, 999, 10**6])
def test_some_targets_of_evenly_spread_passes(small, limit):
    made = passes(small.dataset, "train", 7)
    some = made.some(limit)
    assert some.counts.sum() == min(limit, made.counts.sum())
    assert some.counts.min() >= 1
    whole = {(u, a): b for u, a, b in zip(made.user.tolist(), made.first.tolist(), made.last.tolist(), strict=True)}
    found = list(zip(some.user.tolist(), some.first.tolist(), some.last.tolist(), strict=True))
    assert len({(u, a) for u, a, _ in found}) == len(found)
    assert sum(whole[u, a] != b for u, a, b in found) <= 1
    gaps = np.diff(np.searchsorted(made.user * 1000 + made.first, some.user * 1000 + some.first))
    assert len(gaps) == 0 or gaps.max() <= 3 * len(made.user) / len(some.user) + 1


@pytest.mark.parametrize("shape", [{}, {"world_size": 2, "accumulation": 2}], ids=str)
@pytest.mark.parametrize("name", ["text", "pretrain", "history"])
def test_steps_of_so_many_targets(small, name, shape):
    made = passes(small.dataset, "train", 5)
    batches = MicroBatches(made, small.packer, stage(name), sequences=12, epochs=2, **shape)
    parts = shape.get("world_size", 1) * shape.get("accumulation", 1)
    learnt = [int(made.counts[batches.describe(number).samples].sum()) for number in range(len(batches))]
    assert max(learnt) <= 12
    assert sum(learnt) + batches.left_out * 5 >= 2 * made.counts.sum() >= sum(learnt)
    steps = [sum(learnt[at : at + parts]) for at in range(0, len(learnt), parts)]
    assert len(steps) == batches.optimizer_steps
    assert [batches.targets(step) for step in range(len(steps) + 1)] == np.cumsum([0, *steps]).tolist()
    assert np.mean(steps[:-1]) > 0.7 * 12 * parts


def test_unknown_items_are_found_before_training(small):
    made = passes(small.dataset, "train", 5)
    flat, offsets = made.sequences
    wrong = flat.copy()
    wrong[offsets[made.user[0]] + made.last[0]] = 10**6
    with pytest.raises(ValueError, match="is not in the catalogue"):
        MicroBatches(made._replace(sequences=(wrong, offsets)), small.packer, stage("text"), sequences=12)


def test_the_history_stage_learns_each_title_once(small):
    made = passes(small.dataset, "train", 10)
    batches = MicroBatches(made, small.packer, stage("history"), rows=2000)
    learnt = []
    for number in range(len(batches)):
        some = made.take(batches.describe(number).samples)
        flat, offsets = some.sequences
        ends = zip(offsets, some.first, some.last, strict=False)
        targets = [flat[at + a : at + b + 1] for at, a, b in ends]
        own = small.packer.catalogue
        place = own.index(np.concatenate(targets))
        batch = batches[number]
        assert (batch["labels"] != -100).sum() == (own.offsets[place + 1] - own.offsets[place] + 1).sum()
        assert batch["position_ids"].shape[1] <= 2000
        learnt.append(len(place))
    assert sum(learnt) == made.counts.sum()
    samples = small.dataset.split("train")
    with pytest.raises(TypeError, match=r"stage 'history' learns runs of titles, expected train.Passes, got Samples"):
        MicroBatches(samples, small.packer, stage("history"), rows=2000)


@pytest.mark.parametrize("name", [*POLICIES, "pretrain"])
def test_the_share_of_rows(small, name):
    """Of some passes, against a count by hand of what neighbours' prompts begin with."""
    made, policy = passes(small.dataset, "train", 6).some(300), stage(name).longest
    packer = copy.copy(small.packer)
    packer.policy, packer.share = policy, False
    prefix, read, alone = len(packer.prompt.prefix), 0, 0
    for place in range(len(made.user)):
        one = made.take(np.array([place]))
        batch = packer.pack_targets(one.sequences, one.first, one.last)
        rows = [tuple(rows.tolist()) for rows in batch.prompts(row_names(batch))]
        alone += sum(len(each) - prefix for each in rows)
        answers = [int((each != -100).sum()) for each in batch.prompts(batch.labels)]
        before = [each[: len(each) - answer] for each, answer in zip(rows, answers, strict=True)]
        read += len({each[:end] for each in before for end in range(1, len(each) + 1)}) - prefix + sum(answers)
    assert read / alone <= share_of_rows(made, packer, policy) < 1.05 * read / alone  # it shares no part of a title


def row_names(batch):
    """(R,) the same number for rows of the same tokens."""
    token_offsets, item_offsets = (part.tolist() for part in batch.offsets)
    names = {}
    found = []
    for a, b in itertools.pairwise(item_offsets):
        items = tuple(tuple(batch.ids[token_offsets[i] : token_offsets[i + 1]].tolist()) for i in range(a, b))
        found.append(names.setdefault(items, len(names)))
    return torch.tensor(found)


@pytest.mark.parametrize("draw", [pf.RandomItemPatches, pf.Dropout])
def test_rows_are_never_exceeded_where_a_user_repeats_items(small, draw):
    """As text, two places of an item may share rows; drawn, one may be a patch and the other not."""
    packer = copy.copy(small.packer)
    packer.max_items, packer.step = 2, 3
    for seed in range(60):
        items = np.random.default_rng(seed).choice(packer.catalogue.item_ids[:3], 30).astype(np.int32)
        made = Passes((items, np.array([0, 30])), *(np.array([place]) for place in (0, 5, 29)))
        arguments = made, packer, Stage("drawn", pf.Text(), draw, p=0.4)
        with pytest.raises(ValueError, match="alone has") as error:
            MicroBatches(*arguments, rows=1, seed=seed)
        least = int(re.search(r"alone has (\d+)", str(error.value))[1])
        batches = MicroBatches(*arguments, rows=least, seed=seed)
        assert batches[0]["position_ids"].shape[1] <= least


@pytest.mark.parametrize("seed", range(20))
def test_a_target_has_the_same_prompt_by_user_and_by_prompt(small, seed):
    """Whatever is cut off, by whom: the packer cannot know how many items there have been."""
    rng = np.random.default_rng(seed)
    packer = copy.copy(small.packer)
    packer.max_items, packer.step, packer.share = int(rng.integers(1, 12)), int(rng.integers(1, 9)), False
    name = rng.choice([*POLICIES])
    options = {"patch_step": int(rng.integers(1, 4))} if name == "pft-i" else {}
    options |= {"anchor": rng.choice(["newest", "oldest"])} if name == "pft-s" else {}
    packer.policy = stage(name, **POLICIES[name], **options).final
    by_user = of_split(small.dataset, "train", packer, 4, None)
    by_user = by_user.take(np.arange(len(by_user.user)))  # a sequence a pass
    by_prompt = of_split(small.dataset, "train", packer, None, None)
    expected = packer.pack_targets(by_user.sequences, by_user.first, by_user.last)
    made = packer.pack(*by_prompt)
    for name in ("ids", "cu_seqlens", "position_ids", "labels"):
        assert torch.equal(getattr(made, name), getattr(expected, name)), name


def test_one_step_is_that_of_the_prompts_alone(small):
    """A batch of passes has the loss and gradients of its targets' prompts, packed one by one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=small.packer.prompt.num_embeddings, **size))
    attach(model)
    made = passes(small.dataset, "train", 6)
    batches = MicroBatches(made, small.packer, stage("pft-s", group=2), rows=900)
    alone = copy.copy(small.packer)
    alone.policy, alone.share = pf.SessionPatches(2), False
    for number in (0, len(batches) - 1):
        model.zero_grad()
        out = model(**batches[number])
        out.loss.backward()
        gradient = model.lm_head.weight.grad.clone()
        some = made.take(batches.describe(number).samples)
        flat, offsets = some.sequences
        histories, targets = [], []
        for user, (first, last) in enumerate(zip(some.first, some.last, strict=True)):
            items = flat[offsets[user] : offsets[user + 1]]
            histories += [items[:at] for at in range(first, last + 1)]
            targets += [items[at] for at in range(first, last + 1)]
        model.zero_grad()
        expected = model(**alone.pack(histories, targets).model_inputs())
        expected.loss.backward()
        torch.testing.assert_close(out.loss, expected.loss, rtol=1e-5, atol=0)
        torch.testing.assert_close(gradient, model.lm_head.weight.grad, rtol=1e-4, atol=1e-7)


def test_batches_depend_on_their_number_alone(small):
    def make():
        return MicroBatches(passes(small.dataset, "train", 5), small.packer, stage("pretrain"), rows=1500, seed=3)

    one, other = make(), make()
    for number in reversed(range(len(one))):
        mine, theirs = one[number], other[number]
        assert mine.keys() == theirs.keys()
        assert torch.equal(mine["ids"], theirs["ids"])


def test_errors(small):
    made = passes(small.dataset, "train", 5)
    with pytest.raises(ValueError, match="targets_per_pass: expected at least 1, got 0"):
        passes(small.dataset, "train", 0)
    with pytest.raises(ValueError, match=r"split: expected one of .*, got 'all'"):
        passes(small.dataset, "all")
    with pytest.raises(ValueError, match=r"sequences: got 4, but pass \d+ has 5 targets"):
        MicroBatches(made, small.packer, stage("text"), sequences=4)
    with pytest.raises(ValueError, match=r"rows: got 60, but pass \d+ alone has"):
        MicroBatches(made, small.packer, stage("text"), rows=60)
    with pytest.raises(TypeError, match=r"samples: expected data.Samples or train.Passes, got list"):
        MicroBatches([], small.packer, stage("text"), rows=60)
    nobody = Passes(made.sequences, *(each[:0] for each in (made.user, made.first, made.last)))
    with pytest.raises(ValueError, match="samples: got 0"):
        MicroBatches(nobody, small.packer, stage("text"), rows=60)
