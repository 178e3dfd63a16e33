# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels' numbers against float64: on the GPU, or on the CPU by Triton's interpreter.

Tolerance of one element. u = 2^-24 is fp32's unit roundoff, S the sum of |weight * value| over its
n terms, all in float64. A term has its weight rounded and a product rounded, and enters at most n
sums of partial results, which gives n + 2 roundings, and (n + 3) u S with the second-order part;
two stages add no more, since they make one sum of the same terms. A GPU fuses product and sum, one
rounding less. The result is rounded once to its type: 2^-24 (fp32) and 2^-11 (fp16) of itself, to
nearest; the interpreter truncates to bf16 where hardware rounds to nearest, which costs 2^-7. Below
fp16's smallest normal number the spacing is 2^-24 whatever the value, half of which is added.
"""

import itertools
import random

import pytest
import torch

from patchrec_fast.ops.compress.plan import CHUNK, make_plan, plan_on_device

pytest.importorskip("triton", reason="needs Triton: pip install triton")

from patchrec_kernels import compress as kernels

from patchrec_fast.ops.compress import triton as backend

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-11}
V = 50

pytestmark = pytest.mark.usefixtures("triton_serves", "poisoned")


def csr(lengths, dtype=torch.int64):
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=dtype)


def make_batch(two_levels, index_dtype=torch.int64, hot=0, singles=20, seed=0):
    """ids and offsets on the CPU: singles, empty items and rows, rows of several tiles, id 7 `hot` times."""
    items = [1] * singles + [0, 2, 1, 17, 5, 0, 3, 1, 30, hot]
    rows = [1] * singles + [0, 3, 1, 0, 4, 0, 1, 1]  # the last: the hot one
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, V, (sum(items),), generator=generator)
    ids[len(ids) - hot :] = 7
    item_offsets = csr(rows, index_dtype) if two_levels else None
    return ids.to(index_dtype), csr(items, index_dtype), item_offsets


def matrix(ids, tokens, items):
    """(R, V) float64: out = matrix @ weight; and (R, V) how many tokens make each element."""
    tokens = tokens.tolist()
    items = list(range(len(tokens))) if items is None else items.tolist()
    mean = torch.zeros(len(items) - 1, V, dtype=torch.float64)
    count = torch.zeros(len(items) - 1, V, dtype=torch.float64)
    for row, (first, last) in enumerate(itertools.pairwise(items)):
        for item in range(first, last):
            for t in range(tokens[item], tokens[item + 1]):
                share = (last - first) * (tokens[item + 1] - tokens[item])
                mean[row, ids[t]] += 1.0 / share
                count[row, ids[t]] += 1
    return mean, count


def assert_close(got, mean, count, values, start=None):
    """got = mean @ values (+ start), within the tolerance derived above."""
    got, values = got.cpu(), values.cpu().double()
    exact, size = mean @ values, mean @ values.abs()
    n = count.sum(1, keepdim=True)
    if start is not None:
        exact, size, n = exact + start.cpu().double(), size + start.cpu().double().abs(), n + 1
    tolerance = (n + 3) * 2.0**-24 * size
    tolerance += ROUNDING[got.dtype] * (exact.abs() + tolerance)
    tolerance += 2.0**-25 if got.dtype is torch.float16 else 0.0
    assert got.shape == exact.shape
    worst = ((got.double() - exact).abs() - tolerance).max() if got.numel() else torch.tensor(0.0)
    assert worst <= 0, f"{worst} beyond the tolerance"  # NaN is not <= 0


def on(device, *tensors):
    return [None if x is None else x.to(device) for x in tensors]


def host_plan(device, ids, tokens, items):
    return make_plan(ids, tokens if items is None else (tokens, items)).to(device)


def device_plan(device, ids, tokens, items):
    return plan_on_device(*on(device, ids, tokens, items), V)


def plans(device, *batch):
    yield host_plan(device, *batch)
    yield device_plan(device, *batch)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("two_levels", [False, True])
def test_forward_and_every_gradient(device, dtype, index_dtype, two_levels):
    batch = make_batch(two_levels, index_dtype, hot=CHUNK + 3)
    mean, count = matrix(*batch)
    ids = batch[0].to(device)
    torch.manual_seed(1)
    weight, start = torch.randn(2, V, 100).to(device, dtype)
    grad = torch.randn(len(mean), 100).to(device, dtype)
    for plan in plans(device, *batch):
        assert_close(kernels.compress(weight, ids, plan), mean, count, weight)
        dense = kernels.compress_backward(grad, V, plan)
        assert_close(dense, mean.T, count.T, grad)
        into = start.clone()
        kernels.compress_backward_(into, grad, plan)
        assert_close(into, mean.T, count.T, grad, start)
        unseen = (count == 0).all(0).to(device)
        assert torch.equal(into[unseen], start[unseen])
        unique, rows = kernels.compress_backward_sparse(grad, plan)
        assert unique.dtype is torch.int64
        assert unique.tolist() == sorted(set(ids.tolist()))
        assert torch.equal(rows, dense[unique])


@pytest.mark.parametrize("seed", range(12))
def test_random_shapes(device, seed):
    """Rows and items of any length, empty ones too; forward and one kind of gradient, as the seed has it."""
    rng = random.Random(seed)
    lengths = [rng.choice([0, 1, 1, 2, rng.randint(1, 40)]) for _ in range(rng.randint(0, 12))]
    tokens, cuts = csr(lengths), sorted(rng.randint(0, len(lengths)) for _ in range(rng.randint(0, 6)))
    items = rng.choice([None, torch.tensor([0, *cuts, len(lengths)])])
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, V, (sum(lengths),), generator=generator)
    mean, count = matrix(ids, tokens, items)
    d, dtype = rng.randint(1, 90), DTYPES[seed % 3]
    weight = torch.randn(V, d, generator=generator).to(device, dtype)
    grad = torch.randn(len(mean), d, generator=generator).to(device, dtype)
    plan = rng.choice([host_plan, device_plan])(device, ids, tokens, items)
    assert_close(kernels.compress(weight, ids.to(device), plan), mean, count, weight)
    dense = kernels.compress_backward(grad, V, plan)
    assert_close(dense, mean.T, count.T, grad)
    unique, rows = kernels.compress_backward_sparse(grad, plan)
    assert torch.equal(rows, dense[unique])
    start = weight.clone()
    kernels.compress_backward_(weight, grad, plan)
    assert_close(weight, mean.T, count.T, grad, start)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 7, 2051])
def test_any_width(device, dtype, d):
    """2051: three tiles of bf16, five of fp32, the last of three columns."""
    batch = make_batch(True, singles=10)
    mean, count = matrix(*batch)
    torch.manual_seed(2)
    weight, grad = torch.randn(V, d).to(device, dtype), torch.randn(len(mean), d).to(device, dtype)
    plan = host_plan(device, *batch)
    assert_close(kernels.compress(weight, batch[0].to(device), plan), mean, count, weight)
    assert_close(kernels.compress_backward(grad, V, plan), mean.T, count.T, grad)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_id_of_many_chunks_is_merged_in_one_order(device, dtype):
    """Twenty chunks: partial sums fill three tiles. fp32 between the stages, one rounding."""
    batch = make_batch(True, hot=19 * CHUNK + 1, singles=3)
    mean, count = matrix(*batch)
    torch.manual_seed(3)
    grad = torch.randn(len(mean), 40).to(device, dtype)
    for plan in plans(device, *batch):
        first, again = (kernels.compress_backward(grad, V, plan) for _ in range(2))
        assert_close(first, mean.T, count.T, grad)
        assert torch.equal(first, again)
        into = torch.zeros_like(first)
        kernels.compress_backward_(into, grad, plan)
        assert torch.equal(into, first)


def test_both_plans_give_the_same_bits(device):
    batch = make_batch(True, hot=300)
    weight, ids = torch.randn(V, 60).to(device), batch[0].to(device)
    of_host, of_device = plans(device, *batch)
    out = kernels.compress(weight, ids, of_host)
    assert torch.equal(out, kernels.compress(weight, ids, of_host))
    assert torch.equal(out, kernels.compress(weight, ids, of_device))
    gradients = [kernels.compress_backward(out, V, plan) for plan in (of_host, of_device)]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_one_token_are_copies(device, dtype):
    ids = torch.arange(V).flip(0)
    weight, given = torch.randn(V, 33).to(device, dtype), plans(device, ids, csr([1] * V), None)
    ids = ids.to(device)
    for plan in given:
        assert torch.equal(kernels.compress(weight, ids, plan), weight[ids])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_far_apart_and_not_aligned(device, dtype):
    """A table inside a larger one: nothing beside its rows is read, nor written."""
    batch = make_batch(True)
    mean, count = matrix(*batch)
    around = torch.full((V + 2, 150), float("nan")).to(device, dtype)
    around[1:-1, 7:107] = torch.randn(V, 100).to(device, dtype)
    weight = around[1:-1, 7:107]
    plan = host_plan(device, *batch)
    assert_close(kernels.compress(weight, batch[0].to(device), plan), mean, count, weight)
    grad, start = torch.randn(len(mean), 100).to(device, dtype), weight.clone()
    kernels.compress_backward_(weight, grad, plan)
    assert_close(weight, mean.T, count.T, grad, start)
    around[1:-1, 7:107] = float("nan")
    assert around.isnan().all()


@pytest.mark.parametrize("rows", [[], [0], [0, 0, 0]])
def test_rows_without_tokens_are_zero(device, rows):
    ids = torch.empty(0, dtype=torch.int64)
    weight = torch.randn(V, 20).to(device)
    for plan in plans(device, ids, csr([]), csr(rows)):
        assert torch.equal(kernels.compress(weight, ids.to(device), plan), weight.new_zeros(len(rows), 20))
        grad = torch.randn(len(rows), 20).to(device)
        assert torch.equal(kernels.compress_backward(grad, V, plan), weight.new_zeros(V, 20))
        unique, sums = kernels.compress_backward_sparse(grad, plan)
        assert (unique.shape, sums.shape) == ((0,), (0, 20))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [-1, V, 2**31 - 1, 2**40, -(2**62)])
def test_an_id_outside_the_table_is_nan_and_nothing_else(device, dtype, bad):
    """Far ones would end the process if read. A copied row, and one of several tokens."""
    ids, tokens, items = make_batch(True)
    mean, count = matrix(ids, tokens, items)
    grad = torch.randn(len(mean), 24).to(device, dtype)
    weight = torch.randn(V, 24).to(device, dtype)
    of_host = host_plan(device, ids, tokens, items)
    whole = kernels.compress(weight, ids.to(device), of_host)
    ids[3] = ids[26] = bad
    row = int((items > int((tokens > 26).nonzero()[0, 0]) - 1).nonzero()[0, 0]) - 1
    of_device = device_plan(device, ids, tokens, items)
    for plan in (of_host, of_device):
        out = kernels.compress(weight, ids.to(device), plan)
        assert [r for r in range(len(out)) if out[r].isnan().any()] == [3, row]
        assert out[[3, row]].isnan().all()
        rest = [r for r in range(len(out)) if r not in (3, row)]
        assert torch.equal(out[rest], whole[rest])
    keep = torch.ones_like(count, dtype=torch.bool)
    dense = kernels.compress_backward(grad, V, of_device)
    changed = make_batch(True)[0]
    for t, r in ((3, 3), (26, row)):
        keep[r, changed[t]] = False
    assert dense.isfinite().all()
    untouched = keep.all(0)
    assert_close(dense.cpu()[untouched], mean.T[untouched], count.T[untouched], grad)
    unique, _ = kernels.compress_backward_sparse(grad, of_device)
    assert unique.tolist() == sorted({i for i in ids.tolist() if 0 <= i < V})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "items", "nan"),
    [
        ([0, 2, 1, 6, 8], None, [1, 2]),
        ([0, 2, 2**40, 6, 8], None, [1, 2]),
        ([-5, 2, 4, 6, 8], None, [0]),
        ([0, 2, 4, 6, 9], None, [3]),
        ([0, 2, 4, 6, 8], [0, 3, 1, 4], [1, 2]),
        ([0, 2, 4, 6, 8], [0, 1, 9, 4], [1, 2]),
    ],
)
def test_malformed_offsets_are_nan_rows_and_no_gradient(device, dtype, tokens, items, nan):
    ids, tokens = torch.arange(8), torch.tensor(tokens)
    items = None if items is None else torch.tensor(items)
    weight = torch.randn(V, 16).to(dtype)
    first = tokens if items is None else tokens[items.clamp(0, 4)]
    good = set(range(len(first) - 1)) - set(nan)
    others = set(range(8)) - {t for row in good for t in range(first[row], first[row + 1])}
    weight[list(others)] = float("inf")  # a good row that takes a token too many is not finite
    plan = device_plan(device, ids, tokens, items)
    out = kernels.compress(weight.to(device), ids.to(device), plan).cpu()
    assert [row for row in range(len(out)) if out[row].isnan().any()] == nan
    assert out[nan].isnan().all()
    for row in good:
        part = weight[first[row] : first[row + 1]]
        count = torch.ones(1, len(part), dtype=torch.float64)
        assert_close(out[row : row + 1], count / len(part), count, part)
    grad = torch.ones_like(out)
    grad[nan] = float("nan")
    assert kernels.compress_backward(grad.to(device), V, plan).isfinite().all()


def test_a_gradient_never_leaves_a_table_smaller_than_the_plans(device):
    ids, tokens, items = make_batch(True, hot=CHUNK + 3)
    plan = host_plan(device, ids, tokens, items)
    grad = torch.randn(items.numel() - 1, 12).to(device)
    whole = kernels.compress_backward(grad, V, plan)
    for kept in (4, 30):  # without and with the merged id, 7
        around = grad.new_zeros(V, 12)
        kernels.compress_backward_(around[:kept], grad, plan)
        assert torch.equal(around[:kept], whole[:kept])
        assert (around[kept:] == 0).all()


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("fault", ["ids", "tokens", "items"])
def test_nothing_outside_the_tensors_is_touched(guard, fault):
    """By ids and offsets that are wrong; with right ones every test sees it."""
    ids, tokens, items = make_batch(True, hot=CHUNK + 3)
    if fault == "ids":
        ids[::5], ids[1::5] = V, -1
    elif fault == "tokens":
        tokens[10], tokens[24], tokens[-1] = 10**6, 1, tokens[-1] + 9
    elif fault == "items":
        items[3], items[22], items[25] = -4, 0, 10**6
    plan = device_plan("cpu", ids, tokens, items)
    weight, grad = torch.randn(V, 20), torch.randn(items.numel() - 1, 20)
    kernels.compress(weight, ids, plan)
    kernels.compress_backward_(weight, grad, plan)
    assert guard.launches >= 3
    assert guard.loads > guard.stores > 0


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_values_that_are_not_finite_stay_in_their_rows(device, value):
    ids, tokens, items = make_batch(True)
    mean, _ = matrix(ids, tokens, items)
    weight = torch.randn(V, 12)
    weight[int(ids[30]), 5] = value
    out = kernels.compress(weight.to(device), ids.to(device), host_plan(device, ids, tokens, items)).cpu()
    touched = mean[:, int(ids[30])] > 0
    assert torch.equal(~out[:, 5].isfinite(), touched)
    assert out[:, [c for c in range(12) if c != 5]].isfinite().all()


def test_backend_takes_no_plan_a_host_plan_and_any_strides(device):
    batch = make_batch(True, torch.int32)
    ours = host_plan(device, *batch)
    ids, tokens, items = on(device, *batch)
    weight, spread = torch.randn(30, V).to(device).T, torch.stack([ids, ids], 1)[:, 0]
    grad = torch.ones(1, 1, device=device).expand(items.numel() - 1, 30)
    expected = kernels.compress(weight.contiguous(), ids, ours)
    gradient = kernels.compress_backward(grad.contiguous(), V, ours)
    for plan in ([], ours.tensors()):
        assert torch.equal(backend.compress(weight, spread, tokens, items, plan), expected)
        csr_and = (grad, spread, tokens, items)
        assert torch.equal(backend.compress_backward(*csr_and, V, plan), gradient)
        unique, rows = backend.compress_backward_sparse(*csr_and, V, plan)
        assert torch.equal(rows, gradient[unique])
        into = torch.zeros(V, 30, device=device)
        backend.compress_backward_(into, *csr_and, plan)
        assert torch.equal(into, gradient)


def test_what_does_not_fit_is_named(device):
    batch = make_batch(True)
    plan = host_plan(device, *batch)
    ids, tokens, items = on(device, *batch)
    weight, grad = torch.randn(V, 8).to(device), torch.randn(items.numel() - 1, 8).to(device)
    with pytest.raises(ValueError, match=f"ids: got {len(ids) - 1}, expected {len(ids)} as in the plan"):
        kernels.compress(weight, ids[1:], plan)
    with pytest.raises(ValueError, match="grad's rows: got"):
        kernels.compress_backward(grad[1:], V, plan)
    with pytest.raises(ValueError, match="into's columns: got 9, expected 8"):
        kernels.compress_backward_(weight.new_zeros(V, 9), grad, plan)
    with pytest.raises(ValueError, match="into: got strides"):
        kernels.compress_backward_(weight.new_zeros(8, V).T, grad, plan)
    forward = plan_on_device(ids, tokens, items, V, gradient=False)
    with pytest.raises(ValueError, match=f"the plan's gradient: got 0, expected {len(ids)}"):
        kernels.compress_backward(grad, V, forward)
