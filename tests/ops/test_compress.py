# SPDX-License-Identifier: Apache-2.0
"""Forward and gradient against float64, on every backend that serves CPU tensors. Budgets: patchrec_fast.testing."""

import itertools

import pytest
import torch

import patchrec_fast as pf
from patchrec_fast.ops import native, pages
from patchrec_fast.ops.compress import reference
from patchrec_fast.testing import (
    Batch,
    assert_within,
    backward_budget,
    forward_budget,
    ragged_batch,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INTEGERS = (torch.int32, torch.int64)
V = 97

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.fixture(params=["cpu", "reference"])
def impl(request):
    if request.param == "cpu" and native.why_not():
        pytest.skip(native.why_not())
    return request.param


def table(d, dtype, seed=1):
    return torch.randn(V, d, generator=torch.Generator().manual_seed(seed)).to(dtype)


def gradient(batch, d, dtype):
    rows = batch.token_offsets if batch.item_offsets is None else batch.item_offsets
    return torch.randn(rows.numel() - 1, d, generator=torch.Generator().manual_seed(2)).to(dtype)


# 945 columns are three AVX-512 tiles of 256, a small one of 128, a pair of vectors and a tail; 4,100 is 16 and one.
@pytest.mark.parametrize("d", [1, 7, 16, 100, 945, 4100])
@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_and_gradient(served, dtype, levels, d):
    impl, device = served
    batch = ragged_batch(67, V, levels=levels, max_items=9, max_tokens=11)
    there = Batch(*(None if x is None else x.to(device) for x in batch))
    weight = table(d, dtype).to(device).requires_grad_()
    out = pf.compress(there.ids, there.offsets, weight, impl=impl)
    assert out.dtype == dtype
    assert_within(out.cpu(), *forward_budget(weight.detach().cpu(), batch))
    grad = gradient(batch, d, dtype)
    out.backward(grad.to(device))
    assert weight.grad.dtype == dtype
    assert_within(weight.grad.cpu(), *backward_budget(grad, batch, V))


# csrc keeps the ids that occur as bits in words of 64.
@pytest.mark.parametrize("num_embeddings", [1, 63, 64, 65, 300_001])
def test_gradient_of_tables_of_many_sizes(impl, num_embeddings):
    batch = ragged_batch(700, num_embeddings, hot=0.1)
    ids = batch.ids.clone()
    ids[-3:] = num_embeddings - 1
    batch = batch._replace(ids=ids)
    weight = torch.zeros(num_embeddings, 3, requires_grad=True)
    grad = gradient(batch, 3, torch.float32)
    pf.compress(batch.ids, batch.offsets, weight, impl=impl).backward(grad)
    assert_within(weight.grad, *backward_budget(grad, batch, num_embeddings))
    sparse = pf.compress(batch.ids, batch.offsets, weight, impl=impl, grad_mode="sparse")
    (found,) = torch.autograd.grad(sparse, weight, grad)
    assert torch.equal(found.coalesce().indices()[0], ids.long().unique())
    assert torch.equal(found.to_dense(), weight.grad)


@pytest.mark.parametrize(("ids", "offsets"), list(itertools.product(INTEGERS, INTEGERS)), ids=str)
def test_integer_dtypes_agree_bitwise(impl, ids, offsets):
    batch = ragged_batch(40, V, id_dtype=ids, offset_dtype=offsets)
    plain = ragged_batch(40, V)
    weight = table(64, torch.bfloat16)
    expected = pf.compress(plain.ids, plain.offsets, weight, impl=impl)
    assert torch.equal(pf.compress(batch.ids, batch.offsets, weight, impl=impl), expected)
    mixed = (batch.token_offsets, batch.item_offsets.long())
    assert torch.equal(pf.compress(batch.ids, mixed, weight, impl=impl), expected)


@pytest.mark.parametrize("isa", native.ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set(monkeypatch, isa, dtype):
    if native.why_not():
        pytest.skip(native.why_not())
    native._isa_index.cache_clear()
    if native.ISAS.index(isa) > native.library().patchrec_best_isa():
        pytest.skip(f"this CPU has no {isa}")
    monkeypatch.setenv("PATCHREC_FAST_ISA", isa)
    try:
        assert native.isa() == isa
        test_forward_and_gradient(("cpu", torch.device("cpu")), dtype, 2, 945)
    finally:
        native._isa_index.cache_clear()


def test_instruction_set_asked_for_wrongly(monkeypatch):
    if native.why_not():
        pytest.skip(native.why_not())
    native._isa_index.cache_clear()
    monkeypatch.setenv("PATCHREC_FAST_ISA", "avx1024")
    with pytest.raises(ValueError, match="PATCHREC_FAST_ISA must be one of portable, avx2, avx512"):
        native.isa()
    native._isa_index.cache_clear()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_values(dtype):
    """Conversions: infinities, NaN, signed zeros, subnormals, the largest and the smallest, and ties."""
    if native.why_not():
        pytest.skip(native.why_not())
    info = torch.finfo(dtype)
    values = [0.0, -0.0, 1.0, info.max, -info.max, info.tiny, info.tiny / 2, info.smallest_normal / 4]
    values += [torch.inf, -torch.inf, torch.nan, 1 + info.eps, 1 + 2 * info.eps, 65504.0, 6e-8, 3e-8]
    weight = torch.tensor(values).to(dtype).repeat(3, 40)  # (3, 640)
    weight[1] = weight[1].roll(1)
    ids = torch.tensor([0, 1, 0, 1, 2], dtype=torch.int32)
    offsets = torch.tensor([0, 1, 3, 5], dtype=torch.int32)
    native._isa_index.cache_clear()
    for isa in native.ISAS[: native.library().patchrec_best_isa() + 1]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATCHREC_FAST_ISA", isa)
            native._isa_index.cache_clear()
            out = pf.compress(ids, offsets, weight, impl="cpu")
        assert torch.equal(out[0].view(torch.uint8), weight[0].view(torch.uint8))  # a copy, bit for bit
        expected = (weight[ids[1:3]].float() * 0.5).sum(0).to(dtype)
        torch.testing.assert_close(out[1], expected, rtol=0, atol=0, equal_nan=True)
    native._isa_index.cache_clear()


def test_empty_items_count_and_get_no_gradient(impl):
    weight = torch.ones(5, 3, requires_grad=True)
    ids = torch.tensor([4, 4])
    offsets = (torch.tensor([0, 0, 2, 2]), torch.tensor([0, 2, 2, 3]))  # {empty, two tokens}, {}, {empty}
    out = pf.compress(ids, offsets, weight, impl=impl)
    assert out.tolist() == [[0.5] * 3, [0.0] * 3, [0.0] * 3]
    out.sum().backward()
    assert weight.grad[4].tolist() == [0.5] * 3
    assert not weight.grad[:4].any()


@pytest.mark.parametrize("levels", [1, 2])
def test_no_rows_and_no_tokens(impl, levels):
    zero = torch.zeros(1, dtype=torch.int32)
    none = torch.empty(0, dtype=torch.int32)
    weight = torch.randn(5, 8, requires_grad=True)
    out = pf.compress(none, zero if levels == 1 else (zero, zero), weight, impl=impl)
    assert out.shape == (0, 8)
    out.sum().backward()
    assert weight.grad.shape == (5, 8)
    assert not weight.grad.any()


@pytest.mark.parametrize("grad_mode", ["dense", "sparse", "accumulate"])
def test_table_without_columns(impl, grad_mode):
    weight = torch.zeros(5, 0, requires_grad=True)
    weight.grad = torch.zeros(5, 0) if grad_mode == "accumulate" else None
    out = pf.compress(torch.tensor([4, 4, 1]), torch.tensor([0, 1, 3]), weight, impl=impl, grad_mode=grad_mode)
    assert out.shape == (2, 0)
    out.backward(torch.zeros(2, 0))
    assert weight.grad.shape == (5, 0)


def test_strided_and_misaligned_tables(impl):
    batch = ragged_batch(30, V)
    base = table(80, torch.bfloat16)
    expected = pf.compress(batch.ids, batch.offsets, base[:, 3:68].contiguous(), impl=impl)
    memory = bytearray(V * 65 * 2 + 1)
    misaligned = torch.frombuffer(memory, dtype=torch.uint8)[1:].view(V, 130)
    misaligned.copy_(base[:, 3:68].contiguous().view(torch.uint8))
    misaligned = torch.frombuffer(memory, dtype=torch.bfloat16, offset=1).view(V, 65)
    views = {
        "rows apart": base[:, 3:68],
        "every second row": base[:, 3:68].repeat_interleave(2, 0)[::2],
        "column major": base[:, 3:68].t().contiguous().t(),
        "odd address": misaligned,
    }
    for name, view in views.items():
        got = pf.compress(batch.ids, batch.offsets, view, impl=impl)
        assert torch.equal(got, expected), name


def test_strided_ids_offsets_and_gradients(impl):
    batch = ragged_batch(30, V)
    weight = table(33, torch.float32).requires_grad_()
    expected = pf.compress(batch.ids, batch.offsets, weight, impl=impl)
    spread = [x.repeat_interleave(2)[::2] for x in batch]
    out = pf.compress(spread[0], (spread[1], spread[2]), weight, impl=impl)
    assert torch.equal(out, expected)
    (reference,) = torch.autograd.grad(expected, weight, torch.ones_like(expected), retain_graph=True)
    (expanded,) = torch.autograd.grad(out, weight, torch.ones(()).expand_as(out), retain_graph=True)
    (columns,) = torch.autograd.grad(out, weight, torch.ones_like(out).t().contiguous().t())
    assert torch.equal(expanded, reference)
    assert torch.equal(columns, reference)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bitwise_equal_across_repeats_and_threads(threads, dtype):
    """Big enough that four threads get a share each (64 Ki multiply-adds)."""
    if native.why_not():
        pytest.skip(native.why_not())
    batch = ragged_batch(300, V)
    weight = table(1030, dtype).requires_grad_()
    grad = gradient(batch, 1030, dtype)
    seen = []
    for count in (1, 2, 3, 4, 1):
        threads(count)
        out = pf.compress(batch.ids, batch.offsets, weight, impl="cpu")
        seen.append((out, *torch.autograd.grad(out, weight, grad)))
    for out, dweight in seen[1:]:
        assert torch.equal(out, seen[0][0])
        assert torch.equal(dweight, seen[0][1])


def test_each_item_weighs_the_same():
    weight = torch.tensor([[1.0], [10.0]])
    ids = torch.tensor([0, 1, 1, 1])
    offsets = (torch.tensor([0, 1, 4]), torch.tensor([0, 2]))
    assert pf.compress(ids, offsets, weight).item() == 5.5  # not 31 / 4


def test_pooling_in_parts_is_pooling_at_once():
    """Item patches first, then sessions of them, is the two-level mean (in float64, to rounding)."""
    batch = ragged_batch(50, V)
    weight = table(9, torch.float64)
    patches = pf.compress(batch.ids, batch.token_offsets, weight)
    places = torch.arange(patches.shape[0])
    assert torch.allclose(
        pf.compress(places, batch.item_offsets, patches),
        pf.compress(batch.ids, batch.offsets, weight),
        rtol=0,
        atol=1e-14,
    )


def test_float64_takes_the_reference_and_gradcheck_passes():
    batch = ragged_batch(6, 11, max_items=3, max_tokens=3)
    weight = torch.randn(11, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: pf.compress(batch.ids, batch.offsets, w), weight)
    assert torch.autograd.gradgradcheck(lambda w: reference.compress(w, *batch) ** 2, weight)
    with pytest.raises(RuntimeError, match=r"impl='cpu' cannot serve.*float64"):
        pf.compress(batch.ids, batch.offsets, weight, impl="cpu")


def test_patch_beyond_2_to_31_elements():
    """Row and table addresses need 64 bits; untouched pages of the table cost nothing."""
    if native.why_not():
        pytest.skip(native.why_not())
    d, v = 2048, 2**20 + 3
    weight = pages.lazy_zeros(v, d, torch.bfloat16).requires_grad_()
    weight.data[-1] = 3.0
    ids = torch.tensor([v - 1, v - 1, 0], dtype=torch.int32)
    out = pf.compress(ids, torch.tensor([0, 1, 3]), weight, impl="cpu")
    assert out[:, 0].tolist() == [3.0, 1.5]
    out.sum().backward()
    assert weight.grad[-1, -1] == 1.5
    assert weight.grad[0, -1] == 0.5
    assert weight.grad[-2, -1] == 0.0
