# SPDX-License-Identifier: Apache-2.0
"""The operators on the pretended device: float64's results, and what they ask of the device."""

import pytest
import torch

import patchrec_fast as pf
from patchrec_fast.ops.attention import Segments, segment_attention
from patchrec_fast.ops.attention.tree import tree_attention
from patchrec_fast.ops.compress import make_plan
from patchrec_fast.ops.cross_entropy import linear_cross_entropy
from patchrec_fast.testing import assert_within, backward_budget, forward_budget, ragged_batch
from tests.ops import trees

V, D = 50, 40
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TRUNCATED = {torch.bfloat16: 2}  # times the budget: the interpreter rounds to bf16 by cutting the bits off
# Without a plan the sizes of a sparse gradient are the device's to tell: how many ids, and by it two slices.
WAITS = {("sparse", False): {"item": 1}}


def moved(batch):
    return batch._replace(**{name: x.cuda() for name, x in batch._asdict().items() if x is not None})


@pytest.mark.parametrize("planned", [True, False])
@pytest.mark.parametrize("grad_mode", ["dense", "accumulate", "sparse"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_compress(pretend, dtype, grad_mode, planned):
    generator = torch.Generator().manual_seed(7)
    levels = 1 if dtype is torch.float16 else 2
    batch = ragged_batch(9, V, levels=levels, hot=0.5, seed=DTYPES.index(dtype))
    table = torch.randn(V, D, generator=generator).to(dtype)
    weight = table.cuda().requires_grad_()
    started = torch.randn(V, D, generator=generator).to(dtype) if grad_mode == "accumulate" else None
    weight.grad = None if started is None else started.cuda()
    plan = make_plan(batch.ids, batch.offsets).to("cuda") if planned else None
    inputs, grad = moved(batch), torch.randn(9, D, generator=generator).to(dtype)
    upstream = grad.cuda()
    pretend.reset()
    out = pf.compress(inputs.ids, inputs.offsets, weight, grad_mode=grad_mode, plan=plan)
    out.backward(upstream)
    counts = pretend.counts()
    assert pretend.waits() == WAITS.get((grad_mode, planned), {})
    assert counts.get("copy to the device", 0) == 0
    assert counts["sum_groups"] >= 1
    exact, budget = forward_budget(table, batch)
    assert_within(out.detach().cpu(), exact, TRUNCATED.get(dtype, 1) * budget)
    made = weight.grad
    if made.is_sparse:
        parts = made._indices().cpu(), made._values().cpu()
        made = torch.sparse_coo_tensor(*parts, (V, D), check_invariants=True).to_dense()
    exact, budget = backward_budget(grad, batch, V)
    if started is not None:
        unit = budget.new_tensor(2.0**-23 if dtype is torch.float32 else torch.finfo(dtype).eps)
        exact, budget = exact + started.double(), budget + unit * (exact.abs() + started.double().abs())
    assert_within(made.cpu(), exact, TRUNCATED.get(dtype, 1) * budget)


def test_compress_in_a_graph(pretend):
    """Forward and backward, without a plan: replayed, they do other contents of the same sizes."""
    first = ragged_batch(9, V, hot=0.3)
    second = first._replace(ids=first.ids.flip(0))
    table = torch.randn(V, D)
    weight, inputs, upstream = table.cuda().requires_grad_(), moved(first), torch.ones(9, D, device="cuda")
    weight.grad = torch.zeros_like(weight)

    def step():
        out = pf.compress(inputs.ids, inputs.offsets, weight, grad_mode="accumulate")
        out.backward(upstream)
        return out

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for batch in (first, second):
        inputs.ids.copy_(batch.ids)
        weight.grad.zero_()
        graph.replay()
        assert_within(out.detach().cpu(), *forward_budget(table, batch))
        assert_within(weight.grad.cpu(), *backward_budget(torch.ones(9, D), batch, V))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tree_attention(pretend, dtype):
    """Two launches and no wait; in a graph, other lengths."""
    tensors = trees.make([2, 0, 1], [3, 2, 5], group=2, columns=3, dtype=dtype, device="cuda")
    rules = {"scale": 0.4, "window": 4, "softcap": 5.0}
    rounding = {} if dtype is torch.float32 else {"weight": 2.0**-7, "result": 2.0**-7}
    pretend.reset()
    with torch.no_grad():
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = tree_attention(*tensors, max_rows=2, max_seqlen=5, **rules)
        counts = pretend.counts()
        assert counts["read_prompts"] == counts["read_paths"] == 1
        graph.replay()
        trees.assert_within(out, trees.exact(tensors, **rules, **rounding))
        tensors.cu_seqlens.copy_(torch.tensor([0, 4, 5, 8]))
        graph.replay()
        trees.assert_within(out, trees.exact(tensors, **rules, **rounding))


@pytest.mark.parametrize("impl", ["flex", "blocks", "reference"])
@pytest.mark.parametrize("rules", [{}, {"window": 3}, {"softcap": 2.0}], ids=str)
def test_segment_attention(pretend, impl, rules):
    """A forest of three levels: forward and gradients are the CPU's float64 to 1e-5, as float32 rounds."""
    cu_seqlens, parent, visible = ([0, 5, 8, 12, 13], [-1, 0, 1, 0], [0, 4, 3, 5])
    position_ids = [*range(5), *range(4, 7), *range(7, 11), 5]
    forest = [torch.tensor(x, dtype=torch.int32) for x in (cu_seqlens, parent, visible)]
    segments = Segments(*forest, torch.tensor(position_ids))
    generator = torch.Generator().manual_seed(3)
    q, k, v, grad = (torch.randn(13, heads, 16, generator=generator) for heads in (4, 2, 2, 4))

    def run(segments, inputs, grad, impl):
        inputs = [x.clone().requires_grad_() for x in inputs]
        out = segment_attention(*inputs, segments, impl=impl, **rules)
        return out, *torch.autograd.grad(out, inputs, grad)

    exact = run(segments, [x.double() for x in (q, k, v)], grad.double(), "reference")
    there = segments.to("cuda")
    for got, expected in zip(run(there, [x.cuda() for x in (q, k, v)], grad.cuda(), impl), exact, strict=True):
        assert (got.cpu().double() - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)


def test_a_batch_moves_without_a_wait(pretend, pack):
    """And in one copy, from pageable memory as from pinned."""
    batch = pack(pf.SessionPatches(2))
    for mine in (batch, batch.pin_memory()):
        pretend.reset()
        moved = mine.to("cuda")
        assert pretend.waits() == {}
        assert pretend.counts()["copy to the device"] == 1
        assert all(torch.equal(a.cpu(), b) for a, b in zip(moved.offsets, batch.offsets, strict=True))
        assert torch.equal(moved.labels.cpu(), batch.labels)
    plan = make_plan(batch.ids, batch.offsets)
    pretend.reset()
    moved = plan.to("cuda")
    assert pretend.waits() == {}
    assert pretend.counts()["copy to the device"] == 1
    assert all(torch.equal(a.cpu(), b) for a, b in zip(moved.tensors(), plan.tensors(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_loss_in_blocks(pretend, dtype):
    """With the log-sum-exp of Triton's program, a block of words at a time, against float64."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 16, generator=generator).to(dtype) for n in (37, 300))
    labels = torch.randint(-1, 300, (37,), generator=generator).clamp(min=-1).where(torch.arange(37) % 5 > 0, -100)
    labels = labels.where(labels >= 0, -100)
    found = []
    for where, wide in (("cuda", dtype), ("cpu", torch.float64)):
        leaves = [x.to(where, wide).requires_grad_() for x in (hidden, weight)]
        losses = linear_cross_entropy(*leaves, labels.to(where), block=37 * 128)
        found.append([losses, *torch.autograd.grad(losses.sum(), leaves)])
    assert pretend.counts()["log_sums"] > 0
    unit = 2.0**-24 if dtype is torch.float32 else 2.0**-8
    for got, exact in zip(*found, strict=True):
        assert (got.detach().cpu().double() - exact).abs().max() <= 32 * unit * exact.abs().max().clamp(min=1)
