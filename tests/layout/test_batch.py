# SPDX-License-Identifier: Apache-2.0
"""PackedBatch on its way: out of workers, into pinned memory, onto a device."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from patchrec_fast.layout import PackedBatch, Packer, RandomItemPatches, SessionPatches, Text, packing
from patchrec_fast.layout.rows import without


class Collate:
    """What a training script writes: the seed comes from the samples, not from the worker."""

    def __init__(self, packer):
        self.packer = packer

    def __call__(self, samples):
        histories, targets = zip(*samples, strict=True)
        return self.packer.pack(list(histories), targets, seed=int(targets[0]))


@pytest.fixture
def samples(sample):
    (flat, offsets), targets = sample.dataset.split("test")
    return list(zip(np.split(flat, offsets[1:-1]), targets.tolist(), strict=True))


def tensors(batch):
    parts = [batch.ids, *batch.offsets, batch.segments.cu_seqlens, batch.position_ids, batch.labels]
    parts += [batch.parent, batch.visible, batch.leaves, batch.supervised_rows, batch.targets]
    return [part for part in parts if part is not None]


def same(a, b):
    assert a.most_rows == b.most_rows
    assert len(tensors(a)) == len(tensors(b))
    return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


def test_workers_give_the_same_batches(sample, samples):
    """Spawned workers pickle the packer in and the batches out."""
    packer = Packer(sample.catalogue, sample.prompt, RandomItemPatches(0.5), max_items=50)
    collate = Collate(packer)
    size = len(samples) // 4
    loader = DataLoader(
        samples,
        batch_size=size,
        collate_fn=collate,
        num_workers=2,
        multiprocessing_context="spawn",
    )
    batches = list(loader)
    assert len(batches) >= 4
    for number, batch in enumerate(batches):
        assert isinstance(batch, PackedBatch)
        assert same(batch, collate(samples[number * size : (number + 1) * size]))


def test_pickle(sample, samples):
    packer = Packer(sample.catalogue, sample.prompt, SessionPatches(5))
    twin = pickle.loads(pickle.dumps(packer))
    batch = Collate(packer)(samples[:3])
    assert same(Collate(twin)(samples[:3]), batch)
    assert same(pickle.loads(pickle.dumps(batch)), batch)


def test_the_packer_is_not_changed_by_packing(sample, samples):
    packer = Packer(sample.catalogue, sample.prompt, SessionPatches(5))
    before = pickle.dumps(packer._pool)
    batch = Collate(packer)(samples[:3])
    for part in tensors(batch):
        part.fill_(7)
    assert pickle.dumps(packer._pool) == before


def test_memory(sample, samples):
    """Contiguous, 16-byte aligned for the kernels' wide loads, and none of it shared."""
    batch = Collate(Packer(sample.catalogue, sample.prompt, SessionPatches(5)))(samples)
    assert all(part.is_contiguous() for part in tensors(batch))
    assert all(part.data_ptr() % 16 == 0 for part in tensors(batch))
    assert len({part.data_ptr() for part in tensors(batch)}) == 9


@pytest.mark.parametrize("targets", [True, False])
def test_to_moves_everything(sample, samples, targets):
    packer = Packer(sample.catalogue, sample.prompt, SessionPatches(5))
    batch = packer.pack([samples[0][0]], [samples[0][1]] if targets else None)
    moved = batch.to("meta", non_blocking=True)
    assert len(tensors(moved)) == (9 if targets else 6)
    assert all(part.device.type == "meta" for part in tensors(moved))
    assert all(part.device.type == "cpu" for part in tensors(batch))
    assert moved.max_seqlen == batch.max_seqlen
    assert len(moved) == 1
    assert same(batch.to("cpu"), batch)


def test_a_tree_moves_whole(sample, samples):
    packer = Packer(sample.catalogue, sample.prompt, SessionPatches(5), share=True)
    batch = Collate(packer)(samples[:3])
    assert len(tensors(batch)) == 11
    assert same(batch.to("cpu"), batch)
    assert same(pickle.loads(pickle.dumps(batch)), batch)
    assert {part.device.type for part in tensors(batch.to("meta"))} == {"meta"}
    assert batch.to("meta").longest == batch.longest == int(batch.position_ids.max()) + 1


def test_pin_memory_pins_everything(sample, samples, monkeypatch):
    """On a machine without an accelerator torch cannot pin, so its method is counted instead."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: pinned.append(t) or t.clone())
    batch = Collate(Packer(sample.catalogue, sample.prompt, SessionPatches(5)))(samples)
    copy = batch.pin_memory()
    assert [t.data_ptr() for t in pinned] == [t.data_ptr() for t in tensors(batch)]
    assert same(copy, batch)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinned_to_device(sample, samples):
    batch = Collate(Packer(sample.catalogue, sample.prompt, SessionPatches(5), plan=True))(samples)
    pinned = batch.pin_memory()
    assert all(part.is_pinned() for part in tensors(pinned))
    moved = pinned.to("cuda", non_blocking=True)
    torch.cuda.synchronize()
    assert same(moved.to("cpu"), batch)


def test_plan_travels_with_the_batch(sample, samples):
    batch = Collate(Packer(sample.catalogue, sample.prompt, SessionPatches(5), plan=True))(samples)
    plan = batch.plan
    assert plan.row_offsets.tolist()[-1] == len(batch.ids)
    assert len(plan.row_offsets) == len(batch.position_ids) + 1
    # the weights of a row are a mean's: they sum to one; float32 sums of n terms err by n * 2**-24
    sums = torch.zeros(len(batch.position_ids), dtype=torch.float64)
    rows = torch.repeat_interleave(torch.diff(plan.row_offsets).long())
    sums.index_add_(0, rows, plan.token_weight.double())
    assert (sums - 1).abs().max() < 100 * 2**-24
    moved = batch.to("meta").plan
    assert {t.device.type for t in moved.tensors()} == {"meta"}
    assert moved.max_id == plan.max_id


def test_plan_is_made_of_the_batch(sample, samples, monkeypatch):
    calls = []
    monkeypatch.setattr(packing, "_make_plan", lambda *given: calls.append(given) or "the plan")
    batch = Packer(sample.catalogue, sample.prompt, SessionPatches(5), plan=True).pack([[1, 2]])
    assert batch.plan == "the plan"
    assert calls == [(batch.ids, batch.offsets)]
    assert Packer(sample.catalogue, sample.prompt, SessionPatches(5)).pack([[1]]).plan is None


@pytest.mark.parametrize("carried", ["as it is", "to", "pin_memory", "pickle", "copy", "replace"])
def test_absent_rows_are_not_split_as_if_whole(sample, carried, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    whole = Packer(sample.catalogue, sample.prompt, Text()).pack([[1, 2], [3], [4, 5]])
    batch = without(whole, [4, 0, 3])
    batch = {
        "as it is": lambda: batch,
        "to": lambda: batch.to("cpu"),
        "pin_memory": batch.pin_memory,
        "pickle": lambda: pickle.loads(pickle.dumps(batch)),
        "copy": lambda: copy.deepcopy(batch),
        "replace": lambda: dataclasses.replace(batch, cu_seqlens=batch.user_offsets, max_seqlen=batch.most_rows),
    }[carried]()
    for name in ("cu_seqlens", "max_seqlen", "segments"):
        with pytest.raises(ValueError, match=rf"{name}: 7 rows of the batch's prompts are not in it"):
            getattr(batch, name)
    with pytest.raises(ValueError, match="prompts: 7 rows"):
        batch.prompts(batch.position_ids)
    assert len(batch) == 3
    assert "and 7 absent" in repr(batch)
    lengths = batch.user_offsets.diff()
    assert lengths.tolist() == (whole.cu_seqlens.diff() - torch.tensor([4, 0, 3])).tolist()
    assert batch.most_rows == int(lengths.max())


def test_the_fields_of_whole_prompts(sample):
    batch = Packer(sample.catalogue, sample.prompt, Text(), share=True).pack([[1, 2]])  # nobody to share with
    assert batch.max_seqlen == batch.most_rows == int(batch.cu_seqlens[1])
    assert batch.cu_seqlens is batch.user_offsets
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.cu_seqlens = batch.user_offsets
    with pytest.raises(TypeError, match="max_seqlen"):
        PackedBatch(batch.ids, batch.offsets, batch.cu_seqlens, position_ids=batch.position_ids)
