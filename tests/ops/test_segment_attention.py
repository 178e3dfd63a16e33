# SPDX-License-Identifier: Apache-2.0
"""Attention of forests against float64: every segment's sequence gathered from its ancestors and attended alone."""

import itertools
import random
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import patchrec_fast.hf.attention  # noqa: F401  registers varlen_attention
from patchrec_fast.ops.attention import Segments, api, cpu, flex, segment_attention
from patchrec_fast.ops.attention.schedule import schedule
from patchrec_fast.testing import UNIT_ROUNDOFF

OPS = torch.ops.patchrec_fast


def forest(lengths, parent, visible):
    arrays = [0, *itertools.accumulate(lengths)], parent, visible
    return Segments.of(*(torch.tensor(each, dtype=torch.int32) for each in arrays))


def wild(rng, count=20, depth=4):
    """Any parents, so hardly ever in depth-first order; one row and more than a tile; seen in full and in part."""
    lengths = [rng.choice([1, 1, 2, 5, 20, 90]) for _ in range(rng.randint(1, count))]
    parent, visible, depths = [], [], []
    for s in range(len(lengths)):
        able = [-1, *(p for p in range(s) if depths[p] < depth)]
        p = rng.choice(able)
        parent.append(p)
        visible.append(0 if p < 0 else rng.choice([1, lengths[p], rng.randint(1, lengths[p])]))
        depths.append(0 if p < 0 else depths[p] + 1)
    return forest(lengths, parent, visible)


def trained(trunk=300, leaves=16, step=15, template=45, users=2, seed=0):
    """What training packs: users under a template, a leaf a target, in depth-first order."""
    rng = random.Random(seed)
    lengths, parent, visible = [template], [-1], [0]
    for _ in range(users):
        above = len(lengths)
        lengths.append(trunk)
        parent.append(0)
        visible.append(template)
        for leaf in range(leaves):
            lengths.append(rng.randint(1, 12))
            parent.append(above)
            visible.append(max(1, trunk - step * (leaves - 1 - leaf)))
    return forest(lengths, parent, visible)


def sequences(segments):
    """The rows of each segment's sequence, in order."""
    first, parent, visible = (x.tolist() for x in (segments.cu_seqlens, segments.parent, segments.visible))
    for s in range(len(parent)):
        rows, node, end = [], s, first[s + 1]
        while node >= 0:
            rows = [*range(first[node], end), *rows]
            if parent[node] >= 0:
                end = first[parent[node]] + visible[node]
            node = parent[node]
        yield rows, first[s + 1] - first[s]


def brute(query, key, value, segments, scale, window=None, softcap=None):
    groups, out = query.shape[1] // key.shape[1], []
    for rows, own in sequences(segments):
        k, v = (x[rows].repeat_interleave(groups, 1) for x in (key, value))
        logits = torch.einsum("nhd,mhd->hnm", query[rows[-own:]], k) * scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        n = len(rows)
        seen = torch.ones(n, n, dtype=torch.bool).tril()
        if window is not None:
            seen &= ~torch.ones(n, n, dtype=torch.bool).tril(-window)
        out.append(torch.einsum("hnm,mhd->nhd", logits.masked_fill(~seen[-own:], -torch.inf).softmax(-1), v))
    return torch.cat(out)


def inputs(segments, heads=(6, 2), widths=(8, 8), dtype=torch.float64, seed=0):
    """query, key, value as a model has them, heads before rows in memory, and an upstream gradient."""
    generator = torch.Generator().manual_seed(seed)
    rows = len(segments.position_ids)
    shapes = (heads[0], widths[0]), (heads[1], widths[0]), (heads[1], widths[1]), (heads[0], widths[1])
    made = (torch.randn(h, rows, d, generator=generator, dtype=torch.float64).to(dtype) for h, d in shapes)
    return [x.transpose(0, 1) for x in made]


def graded(call, qkv, grad):
    leaves = [x.detach().clone().requires_grad_() for x in qkv]
    out = call(*leaves)
    return out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))


def check(segments, heads=(6, 2), widths=(8, 8), dtype=torch.float64, window=None, softcap=None, impl="auto", seed=0):
    """Output and gradients; each within some dozens of roundings of O(1) sums, 16 bits rounded once on top."""
    *qkv, grad = inputs(segments, heads, widths, dtype, seed)
    options = {"scale": 0.3, "window": window, "softcap": softcap}
    found = graded(lambda *x: segment_attention(*x, segments, impl=impl, **options), qkv, grad)
    exact = graded(lambda *x: brute(*x, segments, **options), [x.double() for x in qkv], grad)
    inner = max(UNIT_ROUNDOFF[dtype], UNIT_ROUNDOFF[torch.float64 if dtype == torch.float64 else torch.float32])
    for name, got, want in zip(("out", "query", "key", "value"), found, exact, strict=True):
        assert got.dtype == dtype
        allowed = 64 * inner * (want.abs().max() + widths[0])
        error = (got.double() - want).abs().max()
        assert error <= allowed, f"{name}: off by {error:.3g}, allowed {allowed:.3g}"


OPTIONS = [(None, None), (1, None), (9, None), (64, None), (None, 2.0), (30, 1.0)]


@pytest.mark.parametrize(("window", "softcap"), OPTIONS)
@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_random_forests(impl, window, softcap):
    for seed in range(6):
        rng = random.Random(seed)
        heads = rng.choice([(6, 2), (3, 3), (4, 1)])
        check(wild(rng), heads, rng.choice([(8, 8), (8, 8), (8, 5)]), window=window, softcap=softcap, impl=impl)


@pytest.mark.parametrize(("window", "softcap"), OPTIONS)
def test_a_block_of_queries_at_a_time(window, softcap, monkeypatch):
    """What serves on CUDA where FlexAttention does not: the same function, called here."""
    monkeypatch.setattr(cpu, "kernels", lambda *_: (cpu._plain, cpu._plain_backward))
    most = []
    monkeypatch.setattr(cpu, "_logits", lambda *x, made=cpu._logits: most.append(made(*x)) or most[-1])
    monkeypatch.setattr(cpu, "_LOGITS", 1 << 12)
    for segments in (trained(trunk=120, leaves=6), *(wild(random.Random(seed)) for seed in range(3))):
        check(segments, window=window, softcap=softcap)
    assert max(each.numel() for each in most) <= 1 << 12


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("window", "softcap"), OPTIONS)
def test_blocks_on_a_gpu(window, softcap):
    segments = trained(trunk=120, leaves=6)
    *qkv, grad = (x.cuda() for x in inputs(segments))
    options = {"scale": 0.3, "window": window, "softcap": softcap}
    found = graded(lambda *x: segment_attention(*x, segments.to("cuda"), **options), qkv, grad)
    exact = graded(lambda *x: brute(*x, segments, **options), [x.cpu() for x in qkv], grad.cpu())
    for got, want in zip(found, exact, strict=True):
        torch.testing.assert_close(got.cpu(), want, rtol=0, atol=1e-11)


@pytest.mark.parametrize("window", [None, 50, 340])
@pytest.mark.parametrize("step", [0, 2, 15])
def test_what_training_packs(step, window):
    check(trained(step=step), window=window)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_siblings_out_of_order(softcap):
    """One among them sees nothing of what the masked call is for."""
    segments = forest([120, 3, 3, 3, 40], [-1, 0, 0, 0, 0], [0, 100, 90, 110, 90])
    made = schedule(segments.cu_seqlens, segments.parent, segments.visible, None)
    assert any(call.blind for call in made.links)
    for dtype in (torch.float64, torch.float32):
        check(segments, dtype=dtype, softcap=softcap)


def test_a_thousand_children():
    rng = random.Random(0)
    lengths = [40, *(rng.randint(1, 3) for _ in range(1000))]
    visible = [0, *(rng.randint(1, 40) for _ in range(1000))]
    segments = forest(lengths, [-1] + [0] * 1000, visible)
    check(segments, heads=(2, 2), widths=(4, 4))
    made = schedule(segments.cu_seqlens, segments.parent, segments.visible, None)
    assert len(made.own) + len(made.links) < 200


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (50, None), (None, 2.0)])
def test_dtypes(dtype, window, softcap):
    check(trained(trunk=120, leaves=6), dtype=dtype, window=window, softcap=softcap)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", [None, 9])
def test_roots_are_varlen_attention_bit_for_bit(dtype, window):
    segments = forest([1, 33, 600, 7], [-1] * 4, [0] * 4)
    *qkv, grad = inputs(segments, widths=(16, 16), dtype=dtype)
    bounds = segments.cu_seqlens
    found = graded(lambda *x: segment_attention(*x, segments, scale=0.3, window=window), qkv, grad)
    wanted = graded(lambda *x: OPS.varlen_attention(*x, bounds, bounds, 0.3, window)[0], qkv, grad)
    assert all(map(torch.equal, found, wanted))


def test_twice_the_same_bits():
    segments = trained()
    *qkv, grad = inputs(segments, dtype=torch.float32)
    first, second = (graded(lambda *x: segment_attention(*x, segments), qkv, grad) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_gradcheck():
    segments = forest([3, 2, 1, 2], [-1, 0, 1, 0], [0, 2, 1, 3])
    *qkv, _ = inputs(segments, heads=(2, 1), widths=(3, 3))
    for options in ({}, {"window": 2}, {"softcap": 1.5}):
        leaves = [x.clone().requires_grad_() for x in qkv]
        assert torch.autograd.gradcheck(lambda *x, o=options: segment_attention(*x, segments, **o), leaves)


def test_the_operator_is_well_formed():
    segments = wild(random.Random(3))
    *qkv, _ = inputs(segments, dtype=torch.float32)
    leaves = [x.detach().clone().requires_grad_() for x in qkv]
    for given in (qkv, leaves):
        for window, softcap in ((None, None), (3, 2.0)):
            arguments = (*given, segments.cu_seqlens, segments.parent, segments.visible, 0.4, window, softcap)
            torch.library.opcheck(OPS.segment_attention.default, arguments)


def _on(attend, segments, *qkv):
    return attend(*qkv, segments)


def test_compile_makes_one_graph_for_every_forest():
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(segment_attention, fullgraph=True, dynamic=True, backend=counter)
    for seed in range(2, 6):
        segments = trained(trunk=20 + seed, leaves=seed, seed=seed)
        *qkv, grad = inputs(segments, widths=(13, 13), dtype=torch.float32)  # a size of its own: equal ones are guarded
        found, wanted = (graded(partial(_on, f, segments), qkv, grad) for f in (compiled, segment_attention))
        assert all(map(torch.equal, found, wanted))
    assert counter.frame_count == 1


def test_inference_mode_checkpointing_and_other_strides():
    segments = trained(trunk=60, leaves=4)
    *qkv, grad = inputs(segments, dtype=torch.float32)
    wanted = graded(lambda *x: segment_attention(*x, segments), qkv, grad)
    found = graded(lambda *x: checkpoint(segment_attention, *x, segments, use_reentrant=False), qkv, grad)
    assert all(map(torch.equal, found, wanted))
    with torch.inference_mode():
        assert torch.equal(segment_attention(*qkv, segments), wanted[0])
    spread = [torch.stack([x, x], -1).flatten(-2)[..., ::2] for x in qkv]  # columns two apart
    assert torch.equal(segment_attention(*spread, segments), wanted[0])
    leaves = [x.clone().requires_grad_() for x in qkv]
    segment_attention(*leaves, segments).sum().backward()  # a gradient of stride 0
    ones = graded(lambda *x: segment_attention(*x, segments), qkv, torch.ones_like(grad))
    assert all(torch.equal(x.grad, g) for x, g in zip(leaves, ones[1:], strict=True))


def test_a_forest_written_in_place_is_not_the_old_one():
    segments = forest([4, 3], [-1, 0], [0, 4])
    *qkv, _ = inputs(segments)
    segment_attention(*qkv, segments)
    flex.block_mask(segments, None)
    segments.visible[1] = 2
    fresh = forest([4, 3], [-1, 0], [0, 2])
    assert torch.equal(segment_attention(*qkv, segments), segment_attention(*qkv, fresh))
    assert torch.equal(_dense(flex.block_mask(segments, None), 7), _dense(flex.block_mask(fresh, None), 7))


def _dense(block_mask, rows):
    """(R, R) what the mask function says."""
    row = torch.arange(rows)
    zero = torch.tensor(0)
    return block_mask.mask_mod(zero, zero, row.unsqueeze(1), row)


def seen(segments, window):
    """(R, R) by the sequences."""
    rows = len(segments.position_ids)
    made = torch.zeros(rows, rows, dtype=torch.bool)
    for path, own in sequences(segments):
        for place in range(len(path) - own, len(path)):
            low = 0 if window is None else max(0, place - window + 1)
            made[path[place], path[low : place + 1]] = True
    return made


@pytest.mark.parametrize("window", [None, 9])
def test_the_block_mask(window, monkeypatch):
    monkeypatch.setattr(flex, "_PAIRS", 1 << 16)  # more than one piece
    for segments in (trained(), *(wild(random.Random(seed)) for seed in range(4))):
        rows = len(segments.position_ids)
        made, wanted = flex.make_block_mask(segments, window), seen(segments, window)
        assert torch.equal(_dense(made, rows), wanted)
        blocks = -(-rows // flex.BLOCK)
        padded = torch.zeros(blocks * flex.BLOCK, blocks * flex.BLOCK, dtype=torch.bool)
        padded[:rows, :rows] = wanted
        tiles = padded.unflatten(0, (blocks, -1)).unflatten(2, (blocks, -1))
        full = tiles.all(3).all(1)
        for counts, order, want in (
            (made.kv_num_blocks, made.kv_indices, tiles.any(3).any(1) & ~full),
            (made.full_kv_num_blocks, made.full_kv_indices, full),
        ):
            listed = torch.zeros_like(want)
            for line in range(blocks):
                listed[line, order[0, 0, line, : int(counts[0, 0, line])].long()] = True
            assert torch.equal(listed, want)


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (9, 2.0)])
def test_flex_attention_gives_the_values(window, softcap):
    segments = trained(trunk=120, leaves=5)
    *qkv, _ = inputs(segments, widths=(16, 16))
    found = flex.segment_attention(*qkv, segments, 0.3, window, softcap)
    assert (found - brute(*qkv, segments, 0.3, window, softcap)).abs().max() < 1e-12


def test_who_serves():
    for device, dtype, widths, message in (
        ("cpu", torch.float32, (64, 64), "runs on CUDA tensors, got a tensor on cpu"),
        ("cuda", torch.float64, (64, 64), "takes float32, bfloat16 and float16, got torch.float64"),
        ("cuda", torch.float32, (8, 8), "heads of 16 to 256 columns, got 8 and 8"),
    ):
        assert message in flex.why_not(device, dtype, widths) or "Triton is not installed" in flex.why_not(
            device, dtype, widths
        )
    assert [api.choose("auto", "cuda", torch.float64), api.choose("auto", "cpu", torch.float64)] == ["blocks", "cpu"]
    assert api.choose("auto", "xpu", torch.float32) == "reference"
    segments = forest([2], [-1], [0])
    *qkv, _ = inputs(segments)
    with pytest.raises(RuntimeError, match="impl='flex' cannot serve this call: it runs on CUDA tensors"):
        segment_attention(*qkv, segments, impl="flex")
    leaves = [x.clone().requires_grad_() for x in qkv]
    (first,) = torch.autograd.grad(segment_attention(*leaves, segments).sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(first.sum(), leaves[:1])


def test_malformed_input_is_named():
    segments = forest([2, 3], [-1, 0], [0, 1])
    q, k, v, _ = inputs(segments)
    loop = Segments(segments.cu_seqlens, torch.tensor([1, 0]), segments.visible, segments.position_ids)
    fewer = Segments(torch.tensor([0, 2, 4]), segments.parent, segments.visible, segments.position_ids)
    for arguments, options, error, message in (
        (
            (q, k, v, segments),
            {"impl": "fast"},
            ValueError,
            "impl must be one of 'auto', 'cpu', 'flex', 'blocks', 'reference'",
        ),
        ((q, k[:4], v, segments), {}, ValueError, r"key must have shape \(5, Hk, 8\), got \(4, 2, 8\)"),
        ((q, k, v[:, :1], segments), {}, ValueError, "value must have shape"),
        ((q[:, :5], k, v, segments), {}, ValueError, "its heads must divide query's 5, got 2"),
        ((q, k.float(), v, segments), {}, TypeError, "key must have query's dtype torch.float64, got torch.float32"),
        ((q, k, v, (0, 5)), {}, TypeError, "segments must be Segments, got tuple"),
        ((q[:4], k[:4], v[:4], segments), {}, ValueError, "segments must have query's 4 rows, got 5"),
        ((q, k, v, segments), {"window": 0}, ValueError, "window must be None or an integer from 1 up, got 0"),
        ((q, k, v, segments), {"softcap": 0.0}, ValueError, "softcap must be None or positive"),
        ((q, k, v, loop), {}, ValueError, "parent: expected an earlier segment or -1, got 1 for segment 0"),
        ((q, k, v, fewer), {}, ValueError, "expected the 5 rows of query, got segments of 4 rows"),
    ):
        with pytest.raises(error, match=message):
            segment_attention(*arguments, **options)
