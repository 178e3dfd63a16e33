# SPDX-License-Identifier: Apache-2.0
"""Dense, sparse and in-place gradients are one gradient; what each promises besides."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import patchrec_fast as pf
from patchrec_fast.ops import native
from patchrec_fast.testing import UNIT_ROUNDOFF, assert_within, backward_budget, ragged_batch

V, D = 97, 300
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.fixture(params=["cpu", "reference"])
def impl(request):
    if request.param == "cpu" and native.why_not():
        pytest.skip(native.why_not())
    return request.param


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


@pytest.fixture
def batch():
    return ragged_batch(60, V)


def table(dtype):
    return torch.randn(V, D, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()


def backward(weight, batch, grad_mode, impl):
    """Runs it and returns the gradient that came in."""
    out = pf.compress(batch.ids, batch.offsets, weight, grad_mode=grad_mode, impl=impl)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out.dtype)
    out.backward(grad)
    return grad


def test_sparse(impl, dtype, batch):
    weight = table(dtype)
    grad = backward(weight, batch, "sparse", impl)
    assert weight.grad.is_sparse
    unique = batch.ids.unique().long()
    assert torch.equal(weight.grad._indices()[0], unique)  # .grad loses the flag that says so, not the fact
    assert_within(weight.grad.to_dense(), *backward_budget(grad, batch, V))
    out = pf.compress(batch.ids, batch.offsets, weight, grad_mode="sparse", impl=impl)
    (dweight,) = torch.autograd.grad(out, weight, grad)
    assert dweight.is_coalesced()
    torch.sparse_coo_tensor(dweight.indices(), dweight.values(), (V, D), check_invariants=True)
    assert torch.equal(dweight.indices()[0], unique)


def test_accumulate_adds_in_place_and_rounds_once(impl, dtype, batch):
    weight = table(dtype)
    before = torch.randn(V, D).to(dtype)
    weight.grad = before.clone()
    storage = weight.grad.data_ptr()
    grad = backward(weight, batch, "accumulate", impl)
    assert weight.grad.data_ptr() == storage
    exact, budget = backward_budget(grad, batch, V)
    total = exact + before.double()
    # The reference rounds the sum before it adds it, which costs that sum's rounding once more.
    budget = budget + UNIT_ROUNDOFF[dtype] * (total.abs() + budget) + UNIT_ROUNDOFF[torch.float32] * before.abs()
    assert_within(weight.grad, total, budget)
    untouched = torch.ones(V, dtype=torch.bool)
    untouched[batch.ids.unique().long()] = False
    assert torch.equal(weight.grad[untouched], before[untouched])


def test_accumulate_without_a_gradient_yet_is_dense(impl, batch):
    dense, accumulated = table(torch.float32), table(torch.float32)
    backward(dense, batch, "dense", impl)
    backward(accumulated, batch, "accumulate", impl)
    assert torch.equal(dense.grad, accumulated.grad)


def test_accumulate_into_a_strided_gradient(impl, batch):
    weight = table(torch.float32)
    wide = torch.zeros(V, D + 5)
    weight.grad = wide[:, :D]
    grad = backward(weight, batch, "accumulate", impl)
    assert_within(wide[:, :D], *backward_budget(grad, batch, V))
    assert not wide[:, D:].any()
    columns = torch.zeros(D, V).t()
    weight.grad = columns
    backward(weight, batch, "accumulate", impl)
    assert torch.equal(columns, wide[:, :D])


@pytest.mark.parametrize("grad_mode", ["dense", "sparse", "accumulate"])
def test_tied_embeddings_and_accumulation_over_steps(impl, grad_mode, batch):
    """The table is the output layer too, for two micro-batches: every mode sums to the same gradient."""

    def gradient(mode, implementation):
        weight = table(torch.float64 if implementation == "oracle" else torch.float32)
        for seed in (0, 1):
            some = ragged_batch(60, V, seed=seed)
            impl = "reference" if implementation == "oracle" else implementation
            hidden = pf.compress(some.ids, some.offsets, weight, impl=impl, grad_mode=mode)
            (F.linear(hidden, weight) ** 2).mean().backward()
        return weight.grad.to_dense() if weight.grad.is_sparse else weight.grad

    expected = gradient("dense", "oracle")
    assert torch.allclose(gradient(grad_mode, impl).double(), expected, rtol=1e-4, atol=1e-6 * expected.abs().max())


def test_no_gradient_is_made_where_none_is_wanted(batch):
    weight = table(torch.float32)
    assert not pf.compress(batch.ids, batch.offsets, weight.detach()).requires_grad
    with torch.no_grad():
        assert not pf.compress(batch.ids, batch.offsets, weight, grad_mode="sparse").requires_grad
    with torch.inference_mode():
        assert pf.compress(batch.ids, batch.offsets, weight).is_inference()


def test_optimizers(batch):
    dense, sparse = (nn.Embedding(V, D) for _ in range(2))
    sparse.load_state_dict(dense.state_dict())
    for module, mode in ((dense, "dense"), (sparse, "sparse")):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            pf.compress(batch.ids, batch.offsets, module.weight, grad_mode=mode).pow(2).sum().backward()
            optimizer.step()
    assert torch.allclose(dense.weight, sparse.weight, atol=1e-6)


def test_errors(batch):
    weight = table(torch.float32)
    with pytest.raises(ValueError, match="grad_mode must be one of 'dense', 'sparse', 'accumulate', got 'loose'"):
        pf.compress(batch.ids, batch.offsets, weight, grad_mode="loose")
    with pytest.raises(ValueError, match="weight must be a leaf"):
        pf.compress(batch.ids, batch.offsets, weight * 2, grad_mode="accumulate")
    weight.grad = torch.zeros(V, D).to_sparse()
    with pytest.raises(ValueError, match=r"needs a dense torch.float32 weight.grad .* got a torch.sparse_coo"):
        backward(weight, batch, "accumulate", "auto")


def test_accumulate_survives_saved_tensor_hooks(batch):
    """Offloading hands the backward other tensor objects; the leaf is still the one written to."""
    plain, hooked = table(torch.float32), table(torch.float32)
    plain.grad, hooked.grad = torch.zeros(V, D), torch.zeros(V, D)
    backward(plain, batch, "accumulate", "auto")
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: x.clone()):
        backward(hooked, batch, "accumulate", "auto")
    assert plain.grad.any()
    assert torch.equal(plain.grad, hooked.grad)


def test_bf16_gradient_sits_at_the_rounding_floor():
    """A hot id: fp32 sums stay at 2^-9 relative (rms of one rounding), bf16 sums drift to ten times that."""
    ids = torch.zeros(4096, dtype=torch.int32)
    offsets = torch.arange(4097, dtype=torch.int32)
    grad = torch.rand(4096, 64).bfloat16()
    weight = torch.zeros(2, 64, dtype=torch.bfloat16, requires_grad=True)
    pf.compress(ids, offsets, weight).backward(grad)
    exact = grad.double().sum(0)
    assert ((weight.grad[0].double() - exact).abs() / exact).max() <= UNIT_ROUNDOFF[torch.bfloat16]
