# SPDX-License-Identifier: Apache-2.0
"""`compress` under torch.func, forward-mode AD, double backward, tracing and export: the answers of plain indexing."""

import pytest
import torch
import torch.autograd.forward_ad as fwd
from torch.autograd import gradcheck, gradgradcheck
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

import patchrec_fast as pf
from patchrec_fast.ops import native
from patchrec_fast.testing import ragged_batch

V, D = 7, 3
IDS = torch.tensor([1, 2, 3, 3, 6, 0])
TWO = (torch.tensor([0, 1, 1, 4, 6]), torch.tensor([0, 3, 3, 4]))
ONE = torch.tensor([0, 1, 1, 4, 6])
OFFSETS = {"one level": ONE, "two levels": TWO}
W, T = torch.randn(2, V, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(params=OFFSETS)
def offsets(request):
    return OFFSETS[request.param]


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """float32 is the C++ kernel's, float64 the reference's."""
    return getattr(torch, request.param)


def plain(weight, ids, offsets):
    """The definition, in differentiable indexing."""
    tokens, items = offsets if isinstance(offsets, tuple) else (offsets, torch.arange(offsets.numel()))
    rows = []
    for first, last in zip(items[:-1].tolist(), items[1:].tolist(), strict=True):
        row = weight.new_zeros(weight.shape[-1])
        for i in range(first, last):
            a, b = int(tokens[i]), int(tokens[i + 1])
            row = row + weight[ids[a:b]].sum(0) / (max(b - a, 1) * (last - first))
        rows.append(row)
    return torch.stack(rows)


def cube(f):
    return lambda w: (f(w) ** 3).sum()


def dual(f, w, t):
    with fwd.dual_level():
        made = fwd.unpack_dual(f(fwd.make_dual(w, t)))
        assert made.tangent is not None
        return made.primal, made.tangent


func = torch.func
TRANSFORMS = {
    "grad": lambda f, w, t: func.grad(cube(f))(w),
    "vjp": lambda f, w, t: func.vjp(f, w)[1](f(t)),
    "jvp": lambda f, w, t: func.jvp(f, (w,), (t,)),
    "jacrev": lambda f, w, t: func.jacrev(f)(w),
    "jacfwd": lambda f, w, t: func.jacfwd(f)(w),
    "hessian": lambda f, w, t: func.hessian(cube(f))(w),
    "reverse over reverse": lambda f, w, t: func.jacrev(func.jacrev(cube(f)))(w),
    "reverse over forward": lambda f, w, t: func.jacrev(func.jacfwd(cube(f)))(w),
    "forward over forward": lambda f, w, t: func.jacfwd(func.jacfwd(cube(f)))(w),
    "gradient of a gradient's norm": lambda f, w, t: func.grad(lambda v: (func.grad(cube(f))(v) ** 2).sum())(w),
    "linearize": lambda f, w, t: func.linearize(cube(f), w)[1](t),
    "vmap": lambda f, w, t: func.vmap(f)(torch.stack([w, t])),
    "vmap over columns": lambda f, w, t: func.vmap(f, in_dims=2, out_dims=1)(torch.stack([w, t], 2)),
    "vmap of vmap": lambda f, w, t: func.vmap(func.vmap(f))(torch.stack([w, t, w, w]).view(2, 2, V, D)),
    "vmap of grad": lambda f, w, t: func.vmap(func.grad(cube(f)))(torch.stack([w, t])),
    "grad of vmap": lambda f, w, t: func.grad(lambda v: func.vmap(cube(f))(torch.stack([v, v * 2])).sum())(w),
    "vmap of jvp": lambda f, w, t: func.vmap(lambda v: func.jvp(f, (v,), (t,)))(torch.stack([w, t])),
    "dual numbers": dual,
    "dual numbers of a parameter": lambda f, w, t: dual(f, w.clone().requires_grad_(), t),
}


@pytest.mark.parametrize(
    ("direct", "offsets", "dtype"),
    [(False, ONE, torch.float32), (True, TWO, torch.float32), (False, TWO, torch.float64)],
    ids=["one level", "the registered op", "float64"],
)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name, direct, offsets, dtype):
    levels = offsets if isinstance(offsets, tuple) else (offsets, None)

    def ours(w):
        if direct:
            return torch.ops.patchrec_fast.compress(w, IDS, *levels, [], "auto")
        return pf.compress(IDS, offsets, w)

    w, t = W.to(dtype), T.to(dtype)
    found = tree_leaves(TRANSFORMS[name](ours, w, t))
    matrix = plain(torch.eye(V, dtype=dtype), IDS, offsets)  # (R, V)
    expected = tree_leaves(TRANSFORMS[name](lambda x: matrix @ x, w, t))
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_vmap_over_ids_and_offsets(offsets, dtype):
    ids = torch.stack([IDS, IDS.flip(0), (IDS + 1) % V])
    tables = torch.stack([W, T, W * T]).to(dtype)
    shared = func.vmap(lambda i: pf.compress(i, offsets, tables[0]))(ids)
    each = func.vmap(lambda i, w: pf.compress(i, offsets, w))(ids, tables)
    gradient = func.vmap(func.grad(lambda w, i: pf.compress(i, offsets, w).pow(2).sum()))(tables, ids)
    for k in range(3):
        torch.testing.assert_close(shared[k], plain(tables[0], ids[k], offsets))
        torch.testing.assert_close(each[k], plain(tables[k], ids[k], offsets))
        wanted = func.grad(lambda w, i: plain(w, i, offsets).pow(2).sum())(tables[k], ids[k])
        torch.testing.assert_close(gradient[k], wanted)
    several = torch.stack([ONE, torch.tensor([0, 0, 3, 3, 6])])
    found = func.vmap(lambda o: pf.compress(IDS, o, tables[0]))(several)
    torch.testing.assert_close(found, torch.stack([plain(tables[0], IDS, o) for o in several]))


def test_an_id_outside_is_an_error_under_vmap():
    with pytest.raises(ValueError, match=r"ids must be in \[0, 7\), got 7"):
        func.vmap(lambda i: pf.compress(i, ONE, W))(torch.stack([IDS, IDS + 1]))


def test_functional_call(dtype):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(V, D)

        def forward(self, ids):
            return pf.compress(ids, TWO, self.table)

    model, weight = Model(), W.to(dtype)
    loss = func.grad(lambda p: func.functional_call(model, p, (IDS,)).pow(2).sum())
    wanted = func.grad(lambda w: plain(w, IDS, TWO).pow(2).sum())(weight)
    torch.testing.assert_close(loss({"table.weight": weight})["table.weight"], wanted)
    new = IDS.flip(0)
    for made in (
        torch.jit.trace(model, (IDS,)),
        torch.export.export(model, (IDS,)).module(),
        torch.export.export(model, (IDS,), strict=False).module(),
    ):
        torch.testing.assert_close(made(new), model(new))


def test_a_trace_is_of_ids_offsets_and_weight(dtype):
    traced = torch.jit.trace(lambda i, o, w: pf.compress(i, o, w), (IDS, ONE, W.to(dtype)))
    for seed in range(5):
        batch = ragged_batch(11, V, levels=1, seed=seed, id_dtype=torch.int64, offset_dtype=torch.int64)
        wanted = pf.compress(batch.ids, batch.offsets, T.to(dtype))
        torch.testing.assert_close(traced(batch.ids, batch.offsets, T.to(dtype)), wanted)


def test_graphs_of_gradients(dtype):
    w, t = W.to(dtype), T.to(dtype)
    wanted = func.grad(cube(lambda x: plain(x, IDS, TWO)))(t)
    torch.testing.assert_close(make_fx(func.grad(cube(lambda x: pf.compress(IDS, TWO, x))))(w)(t), wanted)

    def gradient(x):
        return torch.autograd.grad(cube(lambda y: pf.compress(IDS, TWO, y))(x), x)[0]

    torch.testing.assert_close(make_fx(gradient)(w.clone().requires_grad_())(t.clone().requires_grad_()), wanted)


@pytest.mark.parametrize("name", ["jacrev", "vmap of grad", "gradient of a gradient's norm"])
def test_compiled_transforms(name):
    torch._dynamo.reset()
    w, t = W.float(), T.float()
    transform = TRANSFORMS[name]
    found = torch.compile(lambda: transform(lambda x: pf.compress(IDS, ONE, x), w, t), backend="aot_eager")()
    torch.testing.assert_close(found, transform(lambda x: plain(x, IDS, ONE), w, t))


@pytest.mark.parametrize(("impl", "offsets"), [("auto", TWO), ("reference", ONE)], ids=["auto", "reference"])
def test_gradcheck_to_second_order(impl, offsets):
    weight = W.clone().requires_grad_()
    assert gradcheck(lambda w: pf.compress(IDS, offsets, w, impl=impl), weight, check_forward_ad=True)
    assert gradgradcheck(lambda w: pf.compress(IDS, offsets, w, impl=impl) ** 3, weight, check_fwd_over_rev=True)


def test_third_derivatives(dtype):
    weight = W.to(dtype).clone().requires_grad_()
    made = []
    for f in (lambda w: pf.compress(IDS, TWO, w), lambda w: plain(w, IDS, TWO)):
        value = (f(weight) ** 4).sum()
        for _ in range(3):
            (grad,) = torch.autograd.grad(value, weight, create_graph=True)
            value = (grad**2).sum()
        made.append(value)
    torch.testing.assert_close(*made)


@pytest.mark.parametrize("mode", ["sparse", "accumulate"])
def test_modes_of_first_derivatives_say_so(mode):
    weight = W.float().requires_grad_()

    def call(w):
        return pf.compress(IDS, ONE, w, grad_mode=mode)

    with pytest.raises(RuntimeError, match=r"use grad_mode='dense' under .*torch.func"):
        func.grad(lambda w: call(w).sum())(W.float())
    with fwd.dual_level(), pytest.raises(RuntimeError, match=r"use grad_mode='dense' under .*forward-mode AD"):
        call(fwd.make_dual(W.float(), T.float()))
    with pytest.raises(RuntimeError, match="has neither a second derivative"):
        torch.autograd.grad(call(weight).sum(), weight, create_graph=True)


@pytest.mark.parametrize("mode", ["dense", "sparse", "accumulate"])
def test_batched_gradients_are_refused(mode):
    if native.why_not():
        pytest.skip(native.why_not())
    weight = W.float().requires_grad_()
    out = pf.compress(IDS, ONE, weight, grad_mode=mode)
    with pytest.raises(RuntimeError, match=r"is_grads_batched=True .* not supported, torch\.func is"):
        torch.autograd.grad(out, weight, torch.ones(2, *out.shape), is_grads_batched=True)
    assert weight.grad is None
