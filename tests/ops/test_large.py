# SPDX-License-Identifier: Apache-2.0
"""Outputs larger than the caches, out of memory that is used again, and of more than 2^31 elements."""

import pytest
import torch

import patchrec_fast as pf
from patchrec_fast.ops import native, pages
from patchrec_fast.testing import assert_within, forward_budget, ragged_batch

pytestmark = pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("d", [2048, 2056], ids=["rows on cache lines", "rows off cache lines"])
def test_output_larger_than_the_caches(dtype, d):
    rows = (40 << 20) // (2048 * dtype.itemsize)
    batch = ragged_batch(rows, 97, max_items=2, max_tokens=3)
    weight = torch.randn(97, d).to(dtype)
    out = pf.compress(batch.ids, batch.offsets, weight, impl="cpu")
    assert out.numel() * dtype.itemsize > pages._FRESH_PAGES
    edges = torch.tensor([0, 1, 63, 1024, 2047, d - 1])
    exact, budget = forward_budget(weight[:, edges], batch)
    assert_within(out[:, edges], exact, budget)
    exact, budget = forward_budget(weight[:, ::97], batch)
    assert_within(out[:, ::97], exact, budget)


def test_more_than_2_to_31_elements_out():
    rows, d = 2**20 + 5, 2048
    weight = torch.randn(3, d).bfloat16()
    ids = torch.arange(rows, dtype=torch.int32) % 3
    out = pf.compress(ids, torch.arange(rows + 1, dtype=torch.int32), weight, impl="cpu")
    assert out.numel() > 2**31
    for row in (0, 2**19, 2**20, rows - 1):
        assert torch.equal(out[row], weight[row % 3])


def test_large_outputs_reuse_memory_only_once_it_is_free():
    rows, d = 5000, 2048
    weight = torch.randn(97, d)
    ids = torch.arange(rows, dtype=torch.int32) % 97
    offsets = torch.arange(rows + 1, dtype=torch.int32)
    pages._kept.clear()
    first = pf.compress(ids, offsets, weight)
    row = first[7].clone()
    view = first[7]  # holds the storage
    address = first.data_ptr()
    del first
    second = pf.compress((ids + 1) % 97, offsets, weight)
    assert second.data_ptr() != address
    assert torch.equal(view, row)
    array = second.numpy()
    kept = array[3].copy()
    del second, view
    third = pf.compress((ids + 2) % 97, offsets, weight)
    assert third.data_ptr() == address  # the first one's, freed by now
    assert (array[3] == kept).all()
    assert torch.equal(third, weight[((ids + 2) % 97).long()])
    del third, array
    assert len(pages._kept) == 2
    pages._kept.clear()
