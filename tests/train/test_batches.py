# SPDX-License-Identifier: Apache-2.0
"""Micro-batches: what they hold, and that they depend on their number only."""

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch

import patchrec_fast as pf
from patchrec_fast.data import Samples
from patchrec_fast.train import MicroBatches, Stage, stage

FIELDS = ("ids", "token_offsets", "item_offsets", "position_ids", "cu_seq_lens_q", "labels")


def rows_of(batches, number):
    return batches[number]["position_ids"].shape[1]


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in FIELDS)


def pack(sample, places, policy, seed=None):
    """Brute force: the histories one by one."""
    flat, offsets = sample.train.histories
    histories = [flat[offsets[place] : offsets[place + 1]].tolist() for place in places]
    packer = pf.Packer(sample.packer.catalogue, sample.prompt, policy, sample.packer.max_items)
    return packer.pack(histories, sample.train.targets[places], seed)


@pytest.mark.parametrize("size", [{"sequences": 7}, {"rows": 700}, {"sequences": 1}])
@pytest.mark.parametrize(("accumulation", "world_size"), [(1, 1), (2, 2), (5, 1)])
@pytest.mark.parametrize("name", ["text", "pretrain"])
def test_each_sample_once_an_epoch_in_another_order(sample, size, accumulation, world_size, name):
    batches = MicroBatches(
        sample.train, sample.packer, stage(name), accumulation=accumulation, world_size=world_size, epochs=3, **size
    )
    parts = accumulation * world_size
    assert len(batches) == parts * batches.optimizer_steps
    assert batches.left_out == 0
    seen = np.concatenate([batches.describe(number).samples for number in range(len(batches))])
    epochs = seen.reshape(3, -1)
    assert (np.sort(epochs) == np.arange(120)).all()
    assert all((one != other).any() for one, other in itertools.combinations(epochs, 2))
    steps = [batches.describe(number).step for number in range(len(batches))]
    assert steps == np.repeat(np.arange(batches.optimizer_steps), parts).tolist()


@pytest.mark.parametrize("size", [{"sequences": 7}, {"rows": 700}])
@pytest.mark.parametrize("epochs", [1, 2])
def test_steps_beyond_the_epochs_go_on(sample, size, epochs):
    def order(**given):
        batches = MicroBatches(sample.train, sample.packer, stage("text"), accumulation=2, **size, **given)
        return batches, [batches.describe(number).samples.tolist() for number in range(len(batches))]

    many, every = order(epochs=5)
    for steps in (1, many.optimizer_steps // 5 + 1, many.optimizer_steps // 2, many.optimizer_steps):
        batches, found = order(epochs=epochs, steps=steps)
        assert batches.optimizer_steps == steps
        assert found == every[: 2 * steps]
        assert batches.describe(len(batches) - 1).progress == (steps - 1) / steps
        assert batches.targets(steps) == sum(map(len, found))


def test_left_out_samples_are_counted(sample):
    batches = MicroBatches(sample.train, sample.packer, stage("text"), sequences=1, world_size=7, epochs=2)
    seen = np.concatenate([batches.describe(number).samples for number in range(len(batches))])
    assert batches.left_out == 2 * (120 % 7) == 240 - len(seen)
    assert len(np.unique(seen)) > 120 - 120 % 7, "not the same ones each epoch"


def test_a_batch_is_its_samples_packed(sample):
    batches = MicroBatches(sample.train, sample.packer, stage("pft-s", group=2), sequences=6, accumulation=2)
    for number in (0, 3, len(batches) - 1):
        expected = pack(sample, batches.describe(number).samples, pf.SessionPatches(2))
        assert same(batches[number], expected.model_inputs())


@pytest.mark.parametrize("name", ["pretrain", "dropout"])
def test_a_twin_is_the_same_samples_as_text(sample, name):
    batches = MicroBatches(sample.train, sample.packer, stage(name), sequences=6)
    for number in (0, 7, len(batches) - 1):
        one = batches.describe(number)
        mixed = pack(sample, one.samples, batches.stage.policy(one.progress), np.random.default_rng(one.seed))
        text = pack(sample, one.samples, pf.Text())
        inputs = batches[number]
        assert inputs["ids"].tolist() == mixed.ids.tolist() + text.ids.tolist()
        assert inputs["labels"][0].tolist() == mixed.labels.tolist() + text.labels.tolist()
        assert inputs["position_ids"][0].tolist() == mixed.position_ids.tolist() + text.position_ids.tolist()
        assert (len(mixed.ids) == len(text.ids)) == (number == 0 or name == "pretrain")


def test_the_probability_rises_over_the_real_steps(sample):
    batches = MicroBatches(sample.train, sample.packer, stage("pretrain"), sequences=4, accumulation=3, epochs=2)
    total = batches.optimizer_steps
    assert total == 20
    assert [batches.describe(3 * step + 2).progress for step in range(total)] == [step / total for step in range(total)]
    patched = np.empty(total)
    for step in range(total):
        offsets = torch.cat([batches[3 * step + part]["token_offsets"].diff() for part in range(3)])
        patched[step] = (offsets > 1).sum()
    assert patched[0] == 0
    assert np.corrcoef(patched, np.arange(total))[0, 1] > 0.9
    short = MicroBatches(sample.train, sample.packer, stage("pretrain"), sequences=4, steps=5)
    assert short.describe(4).progress == 4 / 5


@pytest.mark.parametrize("size", [{"sequences": 3}, {"rows": 800}])
def test_processes_and_accumulation_are_interchangeable(sample, size):
    def make(accumulation, world_size):
        return MicroBatches(
            sample.train, sample.packer, stage("pretrain"), accumulation=accumulation, world_size=world_size, **size
        )

    four, two, one = make(4, 1), make(2, 2), make(1, 4)
    assert len(four) == len(two) == len(one)
    for number in range(0, len(four), 5):
        assert same(four[number], two[number])
        assert same(four[number], one[number])


def test_a_step_learns_the_same_samples_however_they_are_dealt(sample):
    """Accumulating 6 micro-batches of 2 sequences, or 2 of 6."""
    many = MicroBatches(sample.train, sample.packer, stage("text"), sequences=2, accumulation=6)
    few = MicroBatches(sample.train, sample.packer, stage("text"), sequences=6, accumulation=2)
    for step in range(10):
        one, other = (
            sorted(np.concatenate([batches.describe(step * parts + part).samples for part in range(parts)]))
            for batches, parts in ((many, 6), (few, 2))
        )
        assert one == other


@pytest.mark.parametrize(("name", "exact"), [("text", True), ("pft-i", True), ("pft-s", True), ("pretrain", False)])
def test_rows_are_never_exceeded(sample, name, exact):
    budget = 600
    batches = MicroBatches(sample.train, sample.packer, stage(name, keep=2, group=2), rows=budget, world_size=2)
    used = [rows_of(batches, number) for number in range(len(batches))]
    assert max(used) <= budget
    if exact:  # one more sample would have been too many, but for the last step
        lengths = np.diff(pack(sample, np.arange(120), batches.stage.final).cu_seqlens.numpy())
        assert min(used[:-4]) + 2 * lengths.max() > budget
        assert sum(used) == lengths.sum()


def test_shared_rows_count_once_a_batch(sample):
    """The rows before the history always; what histories begin with alike besides makes batches smaller still."""
    packer, budget, prefix = copy.copy(sample.packer), 600, len(sample.prompt.prefix)
    packer.share = True
    batches = MicroBatches(sample.train, packer, stage("pft-i", keep=2), rows=budget)
    used = [rows_of(batches, number) for number in range(len(batches))]
    whole = [pack(sample, batches.describe(number).samples, batches.stage.final) for number in range(len(batches))]
    lengths = np.diff(pack(sample, np.arange(120), batches.stage.final).cu_seqlens.numpy())
    assert max(used) <= budget
    for rows, batch in zip(used, whole, strict=True):
        assert rows <= len(batch.position_ids) - prefix * (len(batch) - 1)
    assert sum(used) > 0.9 * (lengths.sum() - prefix * (120 - len(batches)))
    with pytest.raises(ValueError, match=rf"alone has {lengths.max()}"):
        MicroBatches(sample.train, packer, stage("pft-i", keep=2), rows=int(lengths.max()) - 1)
    one = MicroBatches(sample.train, packer, stage("pft-i", keep=2), rows=int(lengths.max()))
    assert max(rows_of(one, number) for number in range(len(one))) == lengths.max()


def test_processes_get_nearly_equal_rows(sample):
    batches = MicroBatches(sample.train, sample.packer, stage("text"), sequences=10, world_size=4)
    for step in range(batches.optimizer_steps):
        rows = [rows_of(batches, 4 * step + rank) for rank in range(4)]
        assert max(rows) / np.mean(rows) < 1.04


def test_the_seed_decides(sample):
    def make(seed):
        return MicroBatches(sample.train, sample.packer, stage("pretrain", p=0.5), sequences=5, seed=seed)

    assert all(same(make(3)[number], make(3)[number]) for number in range(24))
    batches, other = make(3), make(4)
    assert not any(np.array_equal(batches.describe(i).samples, other.describe(i).samples) for i in range(24))
    draws = {np.random.default_rng(each.describe(i).seed).random() for each in (batches, other) for i in range(24)}
    assert len(draws) == 48


def test_elements_are_read_in_any_order_and_by_copies(sample):
    batches = MicroBatches(sample.train, sample.packer, stage("pretrain"), sequences=5, epochs=2)
    expected = [batches[number] for number in range(len(batches))]
    other = pickle.loads(pickle.dumps(batches))
    for number in reversed(range(len(batches))):
        assert same(other[number], expected[number])
    assert pickle.loads(pickle.dumps(batches.collate))([expected[7]]) is expected[7]
    assert batches.packer.policy == pf.Text(), "the caller's packer is left alone"


def test_iterating_ends(sample):
    batches = MicroBatches(sample.train, sample.packer, stage("text"), sequences=50)
    assert len(list(batches)) == len(batches) == 3


def test_the_packers_plan_is_kept(sample):
    packer = copy.copy(sample.packer)
    packer.plan = True
    batches = MicroBatches(sample.train, packer, stage("text"), sequences=5)
    assert "plan" in batches[0]
    assert "plan" not in MicroBatches(sample.train, sample.packer, stage("text"), sequences=5)[0]


@pytest.mark.parametrize(
    ("one", "policy"),
    [
        (stage("pretrain"), pf.Text()),
        (stage("dropout"), pf.Text()),
        (stage("pft-i", keep=2), pf.ItemPatches(2)),
        (Stage("own", pf.ItemPatches(0), pf.RandomItemPatches, twin=True), pf.ItemPatches(0)),
    ],
)
@pytest.mark.parametrize("size", [{"sequences": 7}, {"rows": 500}])
def test_evaluation_is_in_order_by_the_final_policy_without_twins(sample, one, policy, size):
    batches = MicroBatches(sample.train, sample.packer, one, evaluation=True, **size)
    assert sorted(batches.describe(0).samples) == list(range(len(batches.describe(0).samples)))
    for number in range(len(batches)):
        assert same(batches[number], pack(sample, batches.describe(number).samples, policy).model_inputs())
    assert sum(len(batches.describe(number).samples) for number in range(len(batches))) == 120


def test_a_single_sample(sample):
    flat, offsets = sample.train.histories
    single = Samples((flat[: offsets[1]], offsets[:2]), sample.train.targets[:1])
    for size in ({"sequences": 5}, {"rows": 500}):
        batches = MicroBatches(single, sample.packer, stage("pretrain"), epochs=2, **size)
        assert [batches.describe(number).samples.tolist() for number in range(len(batches))] == [[0], [0]]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "sequences, rows: expected one of them, got None and None"),
        ({"sequences": 2, "rows": 500}, ValueError, "sequences, rows"),
        ({"sequences": 0}, ValueError, "sequences: expected at least 1, got 0"),
        ({"rows": 2.5}, TypeError, "rows: expected an int"),
        ({"rows": 50}, ValueError, r"rows: got 50, but sample \d+ alone has \d+; give more"),
        ({"sequences": 2, "accumulation": 0}, ValueError, "accumulation"),
        ({"sequences": 2, "world_size": True}, TypeError, "world_size"),
        ({"sequences": 2, "epochs": -1}, ValueError, "epochs"),
        ({"sequences": 2, "steps": 0}, ValueError, "steps: expected at least 1"),
        ({"sequences": 2, "seed": -1}, ValueError, "seed"),
        ({"sequences": 2, "steps": 600_001}, ValueError, "steps: expected at most 600,000, 10,000 epochs of them"),
        ({"sequences": 2, "accumulation": 11, "world_size": 11}, ValueError, "samples: got 120, expected at least 121"),
    ],
)
def test_errors_name_the_argument(sample, arguments, error, message):
    with pytest.raises(error, match=message):
        MicroBatches(sample.train, sample.packer, stage("text"), **arguments)


def test_a_bad_sample_is_found_before_training(sample):
    (flat, offsets), targets = sample.train
    for by, message in ((10**6, "is not in the catalogue"), (-(10**6), "expected no negative number")):
        for wrong in (Samples((flat, offsets), targets + by), Samples((flat + by, offsets), targets)):
            with pytest.raises(ValueError, match=message):
                MicroBatches(wrong, sample.packer, stage("text"), sequences=2)


def test_samples_are_checked(sample):
    histories, targets = sample.train
    with pytest.raises(TypeError, match=r"samples: expected data.Samples or train.Passes, got list"):
        MicroBatches([1, 2], sample.packer, stage("text"), sequences=2)
    with pytest.raises(ValueError, match="samples: got 120 histories and 119 targets"):
        MicroBatches(Samples(histories, targets[1:]), sample.packer, stage("text"), sequences=2)


def test_only_batches_of_one(sample):
    batches = MicroBatches(sample.train, sample.packer, stage("text"), sequences=2)
    with pytest.raises(ValueError, match="expected 1 micro-batch a batch, got 2; set per_device_train_batch_size=1"):
        batches.collate([batches[0], batches[1]])
    for number in (len(batches), -1):
        with pytest.raises(IndexError, match=f"micro-batch {number} of 60"):
            batches[number]
