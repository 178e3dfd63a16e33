# SPDX-License-Identifier: Apache-2.0
"""Peak memory on a CPU: a large array shows, also after it is gone, and not in what comes after."""

import mmap

import pytest
import torch

from patchrec_fast.evaluation import memory
from patchrec_fast.evaluation.memory import RESIDENT, RESIDENT_EVER, PeakMemory

MIB = 2**20


def take(mebibytes):
    with mmap.mmap(-1, mebibytes * MIB) as pages:  # not malloc, which may have kept some
        for page in range(0, len(pages), mmap.PAGESIZE):
            pages[page] = 1


@pytest.mark.skipif(not memory._put_back(), reason="the high-water mark cannot be put back here")
def test_the_mark_is_put_back():
    before = PeakMemory(torch.device("cpu"))
    take(96)
    large = before.bytes()
    after = PeakMemory(torch.device("cpu"))
    small = after.bytes()
    assert before.kind == after.kind == RESIDENT
    assert 80 * MIB < large - small < 200 * MIB
    take(48)
    assert 32 * MIB < after.bytes() - small < 90 * MIB


def test_where_it_cannot_be_put_back(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "no" / "clear_refs")
    peak = PeakMemory(torch.device("cpu"))
    assert peak.kind == RESIDENT_EVER
    assert 50 * MIB < peak.bytes() < 100_000 * MIB


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    peak = PeakMemory(torch.device("cuda"))
    before = peak.bytes()
    torch.ones(64 * MIB, dtype=torch.uint8, device="cuda")
    assert peak.kind == memory.ALLOCATED
    assert peak.bytes() - before >= 64 * MIB
