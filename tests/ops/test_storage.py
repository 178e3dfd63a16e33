# SPDX-License-Identifier: Apache-2.0
"""Tensors whose memory is not what their shape says: freed, negated, shared, overlapping, on another device."""

import contextlib
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

import patchrec_fast as pf
from patchrec_fast import info
from patchrec_fast.ops import backends, native, pages
from patchrec_fast.ops.compress import operator
from patchrec_fast.ops.memory import overlaps_itself
from patchrec_fast.testing import assert_within, backward_budget, forward_budget, ragged_batch

V, D = 23, 6
BATCH = ragged_batch(9, V)


def table(dtype=torch.float32):
    return torch.randn(V, D, generator=torch.Generator().manual_seed(1)).to(dtype)


def by(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["cpu", "reference"])
def impl(request):
    if request.param == "cpu" and native.why_not():
        pytest.skip(native.why_not())
    return request.param


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_calls_that_end_the_process_where_they_are_wrong():
    """Default devices, freed storages, ids that a thread writes: one interpreter, whose children try a case each."""
    command = [sys.executable, "-m", "tests.ops.wild"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stdout + found.stderr[-6000:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_views_with_a_pending_negation_have_their_sign(dtype):
    """The imaginary part of a conjugate is such a view too."""
    plain = table(dtype)
    views = {"negative": torch._neg_view(-plain)}
    if dtype in (torch.float32, torch.float64):
        views["imaginary"] = torch.complex(plain, -plain).conj().imag
    for view in views.values():
        assert view.is_neg()
        for impl in ("auto", "reference"):
            expected = pf.compress(BATCH.ids, BATCH.offsets, plain, impl=impl)
            assert torch.equal(pf.compress(BATCH.ids, BATCH.offsets, view, impl=impl), expected)
            for mode in ("dense", "sparse", "accumulate"):
                found = []
                for grad, start in ((view[:9], view), (plain[:9], plain)):
                    leaf = view.detach().requires_grad_()
                    if mode == "accumulate":
                        leaf.grad = start.detach().clone() if grad is not view[:9] else torch._neg_view(-plain)
                    pf.compress(BATCH.ids, BATCH.offsets, leaf, impl=impl, grad_mode=mode).backward(grad)
                    found.append(leaf.grad.to_dense())
                assert torch.equal(*found)


def test_a_gradient_that_is_a_negative_view_is_added_to(impl):
    leaf, start = table().requires_grad_(), by(3, V, D)
    memory = -start
    leaf.grad = torch._neg_view(memory)
    assert leaf.grad.is_neg()
    grad = by(4, 9, D)
    pf.compress(BATCH.ids, BATCH.offsets, leaf, impl=impl, grad_mode="accumulate").backward(grad)
    exact, budget = backward_budget(grad, BATCH, V)
    assert_within(leaf.grad, exact + start.double(), budget + 2.0**-22 * (start.double().abs() + exact.abs()))
    assert torch.equal(leaf.grad, -memory)


def test_zeros_without_memory(impl):
    weight = table().requires_grad_()
    zeros = torch._efficientzerotensor((V, D))
    assert not pf.compress(BATCH.ids, BATCH.offsets, zeros, impl=impl).any()
    for mode in ("dense", "sparse"):
        out = pf.compress(BATCH.ids, BATCH.offsets, weight, impl=impl, grad_mode=mode)
        (grad,) = torch.autograd.grad(out, weight, torch._efficientzerotensor((9, D)))
        assert not grad.to_dense().any()


def test_a_gradient_table_that_cannot_be_added_to_is_refused(impl):
    inference = torch.inference_mode()
    with inference:
        of_inference = torch.zeros(V, D)

    class Sub(torch.Tensor):
        pass

    weight = table().requires_grad_()
    bad = {
        "share memory": torch.zeros(1, D).expand(V, D),
        "share memory ": torch.zeros(V, 1).expand(V, D),
        "share memory  ": torch.zeros(V * D).as_strided((V, D), (D - 1, 1)),
        "share memory   ": torch.zeros(()).expand(V, D),
        "made in inference mode": of_inference,
        "got a Sub": torch.zeros(V, D).as_subclass(Sub),
        "shares the weight's": weight.detach(),
        "without memory": torch._efficientzerotensor((V, D)),
        "sparse_coo": torch.zeros(V, D).to_sparse(),
    }
    for message, into in bad.items():
        weight.grad = into
        out = pf.compress(BATCH.ids, BATCH.offsets, weight, impl=impl, grad_mode="accumulate")
        before = weight.detach().clone()
        with pytest.raises(ValueError, match=message.strip()):
            out.sum().backward()
        assert torch.equal(weight, before)
        assert not into.to_dense().any() or message.startswith("shares")


def test_overlap_is_what_a_count_of_addresses_says():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        shape, stride = rng.integers(0, 7, 2).tolist(), rng.integers(0, 9, 2).tolist()
        x = torch.empty(200).as_strided(shape, stride)
        places = {i * stride[0] + j * stride[1] for i in range(shape[0]) for j in range(shape[1])}
        assert overlaps_itself(x) == (len(places) < x.numel()), (shape, stride)


def test_the_incoming_gradient_may_be_a_view_of_the_table_it_is_added_to(impl):
    weight, start = table().requires_grad_(), by(3, V, D)
    found = []
    for shared in (True, False):
        weight.grad = start.clone()
        grad = weight.grad[:9] if shared else weight.grad[:9].clone()
        pf.compress(BATCH.ids, BATCH.offsets, weight, impl=impl, grad_mode="accumulate").backward(grad)
        found.append(weight.grad)
    assert torch.equal(*found)


def test_adding_in_place_is_seen_by_autograd(impl):
    """A tensor saved for a backward and changed since is an error, as after any in-place operation."""
    weight = table().requires_grad_()
    weight.grad = torch.ones(V, D)
    x = torch.ones(V, D, requires_grad=True)
    product = (x * weight.grad).sum()
    pf.compress(BATCH.ids, BATCH.offsets, weight, impl=impl, grad_mode="accumulate").sum().backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_means_near_the_largest_number_are_finite(dtype, sign):
    """Divided before they are summed, in every order of rows of 2, 4 and 16."""
    largest = sign * torch.finfo(dtype).max
    weight = torch.full((V, D), largest, dtype=dtype)
    ids = torch.arange(22, dtype=torch.int32)
    for offsets in (torch.tensor([0, 2, 6, 22]), (torch.tensor([0, 2, 6, 22]), torch.tensor([0, 1, 3]))):
        for impl in ("auto", "reference"):
            assert (pf.compress(ids, offsets, weight, impl=impl) == largest).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_accumulate_rounds_once(impl, dtype):
    """start + the exact gradient, rounded; not the gradient rounded, then added and rounded again."""
    batch = ragged_batch(200, V, hot=0.0)
    for seed in range(5):
        weight = torch.zeros(V, D, dtype=dtype, requires_grad=True)
        start, grad = by(seed, V, D).to(dtype), by(seed + 9, 200, D).to(dtype)
        weight.grad = start.clone()
        pf.compress(batch.ids, batch.offsets, weight, impl=impl, grad_mode="accumulate").backward(grad)
        exact, _ = backward_budget(grad, batch, V)
        _, summed = backward_budget(grad.float(), batch, V)
        total = exact + start.double()
        u = torch.finfo(dtype).eps / 2
        assert_within(weight.grad, total, summed + 2.0**-22 * total.abs() + u * (total.abs() + summed) + 2.0**-25)


def test_kept_blocks_belong_to_one_tensor_at_a_time():
    """Threads that allocate, write and free large outputs: no error, and no block in two hands."""
    if native.why_not():
        pytest.skip(native.why_not())
    before, errors, end = sys.getswitchinterval(), [], time.time() + 1.5
    sys.setswitchinterval(1e-6)

    def work(mark):
        rows = np.random.default_rng(mark)
        held = []
        try:
            while time.time() < end:
                made = pages.empty(int(rows.choice([9000, 12000, 17000, 33000])), 1024, torch.float32)
                made[0], made[-1] = mark, mark
                held.append(made)
                if len(held) > 2:
                    old = held.pop(0)
                    if not (old[0] == mark).all() or not (old[-1] == mark).all():
                        raise AssertionError("written by another thread")
        except Exception as error:
            errors.append(repr(error))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(before)
    assert not errors
    assert len(pages._kept) <= 2
    pages._kept.clear()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_blocks_of_its_own():
    if native.why_not():
        pytest.skip(native.why_not())
    pages._kept.clear()
    ids, offsets = torch.arange(9000, dtype=torch.int32) % V, torch.arange(9001, dtype=torch.int32)
    weight = by(1, V, 1024)
    expected = pf.compress(ids, offsets, weight).clone()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        os._exit(int(not torch.equal(pf.compress(ids, offsets, weight), expected)))
    mine = pf.compress(ids, offsets, weight)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(mine, expected)
    pages._kept.clear()


def test_a_native_library_asked_for_that_does_not_serve(monkeypatch, tmp_path):
    """PATCHREC_FAST_NATIVE names no file, no library, or one without this version's functions."""
    text, old = tmp_path / "text.so", tmp_path / "old.so"
    text.write_text("not a library")
    cases = {tmp_path / "absent.so": "there is no such file", text: "does not load", tmp_path: "does not load"}
    with contextlib.suppress(OSError, subprocess.CalledProcessError):  # no C compiler
        source = "int patchrec_abi_version(void) { return 1; }"
        subprocess.run(["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(old)], input=source, text=True, check=True)
        cases[old] = "does not load"
    remembered = (native.why_not, native.library, backends.choose, operator._chosen)
    try:
        for path, message in cases.items():
            monkeypatch.setattr(native, "_ASKED_FOR", str(path))
            monkeypatch.setattr(native, "_LIBRARY", path)
            for answer in remembered:
                answer.cache_clear()
            for impl in ("auto", "cpu"):
                with pytest.raises(RuntimeError, match=f"PATCHREC_FAST_NATIVE={path}: .*{message}"):
                    pf.compress(BATCH.ids, BATCH.offsets, table(), impl=impl)
            assert pf.compress(BATCH.ids, BATCH.offsets, table(), impl="reference").isfinite().all()
            assert f"PATCHREC_FAST_NATIVE={path}: " in info.report()
    finally:
        monkeypatch.undo()
        for answer in remembered:
            answer.cache_clear()


def test_sparse_tables_and_ids_are_refused():
    ids, offsets = BATCH.ids, BATCH.offsets
    with pytest.raises(TypeError, match=r"weight must be a dense table, got a torch\.sparse_coo tensor"):
        pf.compress(ids, offsets, table().to_sparse())
    with pytest.raises(TypeError, match=r"ids must be dense, got a torch\.sparse_coo tensor"):
        pf.compress(ids.to_sparse(), offsets, table())


def test_the_forward_of_a_table_in_shared_or_offset_memory(impl):
    whole = by(1, V * D + 3).share_memory_()
    weight = whole[3:].view(V, D)
    assert_within(pf.compress(BATCH.ids, BATCH.offsets, weight, impl=impl), *forward_budget(weight, BATCH))
