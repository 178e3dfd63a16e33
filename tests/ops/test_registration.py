# SPDX-License-Identifier: Apache-2.0
"""The registered operators among torch's other machinery: opcheck, compile, checkpointing, meta, modes."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import patchrec_fast as pf
from patchrec_fast.ops import native
from patchrec_fast.testing import ragged_batch

V, D = 37, 20
OPS = torch.ops.patchrec_fast


def table(dtype=torch.float32, requires_grad=True):
    return torch.randn(V, D, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_(requires_grad)


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype, levels, impl):
    batch = ragged_batch(9, V, levels=levels)
    rows = batch.offsets[1] if levels == 2 else batch.offsets
    grad = torch.randn(rows.numel() - 1, D, dtype=dtype)
    torch.library.opcheck(OPS.compress.default, (table(dtype), *batch, [], impl))
    torch.library.opcheck(OPS.compress_backward.default, (grad, *batch, V, [], impl))
    torch.library.opcheck(OPS.compress_backward_sparse.default, (grad, *batch, V, [], impl))
    into = torch.zeros(V, D, dtype=dtype)
    torch.library.opcheck(OPS.compress_backward_.default, (into, grad, *batch, [], impl))


def loss(weight, ids, token_offsets, item_offsets):
    return pf.compress(ids * 1, (token_offsets, item_offsets), weight * 2).pow(2).sum()


BATCHES = [(5, 0), (9, 1), (3, 2), (17, 3), (2, 4), (1, 5)]


def test_compile_makes_one_graph_for_every_batch():
    """Sizes marked unbacked: no recompilation, not even for one row."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for rows, seed in BATCHES:
        batch = ragged_batch(rows, V, seed=seed)
        for x in batch:
            torch._dynamo.decorators.mark_unbacked(x, 0)
        weights = table(), table()
        compiled(weights[0], *batch).backward()
        loss(weights[1], *batch).backward()
        assert torch.equal(weights[0].grad, weights[1].grad)
    assert counter.frame_count == 1


def test_compile_with_inductor_and_dynamic_shapes():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=counter)
    for rows, seed in BATCHES[:4]:
        batch = ragged_batch(rows, V, seed=seed)
        weights = table(), table()
        compiled(weights[0], *batch).backward()
        loss(weights[1], *batch).backward()
        assert torch.allclose(weights[0].grad, weights[1].grad, rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1


def test_compile_with_a_bound_module():
    torch._dynamo.reset()
    module = torch.nn.Embedding(V, D)
    batch = ragged_batch(9, V)
    with pf.use_embedding(module):
        compiled = torch.compile(lambda ids, *offsets: pf.compress(ids, offsets), fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(*batch), pf.compress(batch.ids, batch.offsets))


@pytest.mark.parametrize("grad_mode", ["sparse", "accumulate"])
def test_eager_only_modes_say_so_under_compile(grad_mode):
    torch._dynamo.reset()
    batch = ragged_batch(9, V)
    compiled = torch.compile(
        lambda w: pf.compress(batch.ids, batch.offsets, w, grad_mode=grad_mode), fullgraph=True, backend="eager"
    )
    with pytest.raises(Exception, match="is for eager mode"):
        compiled(table())


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing(use_reentrant):
    batch = ragged_batch(9, V)
    weights = table(), table()
    checkpoint(loss, weights[0], *batch, use_reentrant=use_reentrant).backward()
    loss(weights[1], *batch).backward()
    assert torch.equal(weights[0].grad, weights[1].grad)


def test_meta_tensors_carry_shapes_only():
    batch = ragged_batch(9, V)
    ids, *offsets = (x.to("meta") for x in batch)
    out = pf.compress(ids, tuple(offsets), table(requires_grad=False).to("meta"))
    assert (out.shape, out.device.type) == ((9, D), "meta")


def test_autocast_keeps_the_tables_dtype():
    batch = ragged_batch(9, V)
    with torch.autocast("cpu", torch.bfloat16):
        assert pf.compress(batch.ids, batch.offsets, table()).dtype == torch.float32


def test_deterministic_mode():
    batch = ragged_batch(9, V)
    weight = table()
    torch.use_deterministic_algorithms(True)
    try:
        pf.compress(batch.ids, batch.offsets, weight).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert weight.grad.isfinite().all()


def test_the_table_changed_after_the_forward_does_not_matter():
    """The gradient is linear in the table, so none of it is saved."""
    batch = ragged_batch(9, V)
    weight = table()
    out = pf.compress(batch.ids, batch.offsets, weight)
    with torch.no_grad():
        weight.zero_()
    out.sum().backward()
    assert weight.grad.any()


def test_tracing_sees_the_operator():
    batch = ragged_batch(9, V)
    from torch.fx.experimental.proxy_tensor import make_fx

    weight = table(requires_grad=False)
    graph = make_fx(lambda w: pf.compress(batch.ids, batch.offsets, w))(weight)
    assert "patchrec_fast.compress" in graph.code
    assert torch.equal(graph(weight + 1), pf.compress(batch.ids, batch.offsets, weight + 1))


def test_gradient_through_the_operator_itself():
    batch = ragged_batch(9, V)
    weights = table(), table()
    OPS.compress(weights[0], *batch, [], "auto").pow(2).sum().backward()
    pf.compress(batch.ids, batch.offsets, weights[1]).pow(2).sum().backward()
    assert torch.equal(weights[0].grad, weights[1].grad)


def test_a_named_backend_serves_or_raises():
    batch = ragged_batch(9, V)
    with pytest.raises(ValueError, match="impl must be one of 'auto', 'cpu', 'triton', 'reference', got 'cuda'"):
        pf.compress(batch.ids, batch.offsets, table(), impl="cuda")
    with pytest.raises(RuntimeError, match=r"impl='triton' cannot serve this call: .*(GPU|Triton)"):
        pf.compress(batch.ids, batch.offsets, table(), impl="triton")


def test_without_the_native_library(monkeypatch):
    """`auto` falls to the reference, `cpu` says what to install."""
    from patchrec_fast.ops import backends
    from patchrec_fast.ops.compress import operator

    batch = ragged_batch(9, V)
    expected = pf.compress(batch.ids, batch.offsets, table(), impl="reference")
    monkeypatch.setattr(native, "_ASKED_FOR", None)  # by PATCHREC_FAST_NATIVE, what is not there is an error
    monkeypatch.setattr(native, "_LIBRARY", native._LIBRARY.with_name("absent.so"))
    remembered = (native.why_not, backends.choose, operator._chosen)
    for answer in remembered:
        answer.cache_clear()
    try:
        assert torch.equal(pf.compress(batch.ids, batch.offsets, table()), expected)
        with pytest.raises(RuntimeError, match=r"install a C\+\+ compiler"):
            pf.compress(batch.ids, batch.offsets, table(), impl="cpu")
    finally:
        for answer in remembered:
            answer.cache_clear()
