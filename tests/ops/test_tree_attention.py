# SPDX-License-Identifier: Apache-2.0
"""`tree_attention` on the CPU against float64, one row at a time, and what the public function refuses."""

import os

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from patchrec_fast.ops.attention import tree_cpu
from patchrec_fast.ops.attention import tree_reference as reference
from patchrec_fast.ops.attention.tree import choose, tree_attention
from patchrec_fast.testing import UNIT_ROUNDOFF
from tests.ops import trees as cases

COUNTS, LENGTHS = [5, 2, 0, 12], [40, 0, 1, 23]
BOUNDS = {"max_rows": 15, "max_seqlen": 50, "scale": 0.4}
CASE = cases.make(COUNTS, LENGTHS)


@pytest.fixture(params=["cpu", "reference"])
def check(request):
    """check(trees, **rules): the result, within its bound. In 16 bits "cpu" also rounds a prompt's weights and mean."""

    def check(trees, within=None, **rules):
        got = tree_attention(*trees, **BOUNDS, impl=request.param, **rules)
        assert got.dtype is trees.value.dtype
        unit = UNIT_ROUNDOFF[got.dtype]
        weight = 2 * unit if request.param == "cpu" and got.dtype.itemsize == 2 else 0.0
        cases.assert_within(got, cases.exact(within or trees, scale=0.4, weight=weight, result=unit, **rules))
        return got

    return check


@pytest.mark.parametrize("dtype", list(UNIT_ROUNDOFF))
@pytest.mark.parametrize("rules", [{}, {"window": 7}, {"softcap": 1.5}, {"window": 30, "softcap": 2}], ids=str)
def test_rows_over_prompt_and_path(check, dtype, rules):
    check(cases.make(COUNTS, LENGTHS, dtype=dtype), **rules)


@pytest.mark.parametrize("seed", range(20))
def test_any_users(check, monkeypatch, seed):
    """Random ones, and paths that are gathered for few rows at a time."""
    monkeypatch.setattr(tree_cpu, "_GATHERED", 200)
    rng = np.random.default_rng(seed)
    counts, lengths = rng.integers(0, 6, 4).tolist(), rng.integers(0, 50, 4).tolist()
    rules = [{}, {"softcap": 1.5}, {"window": int(rng.integers(1, 60))}][seed % 3]
    columns = int(rng.integers(1, 9))
    check(cases.make(counts, lengths, columns=columns, group=int(rng.integers(1, 4)), seed=seed), **rules)


@pytest.mark.parametrize("window", [1, 2, 30, 55, 1000])
def test_window(check, window):
    check(CASE, window=window)


@pytest.mark.parametrize("group", [1, 3, 4])
@pytest.mark.parametrize("key_heads", [1, 2])
def test_groups(check, group, key_heads):
    check(cases.make(COUNTS, LENGTHS, group=group, key_heads=key_heads, d=5))


def test_queries_of_another_type_than_values(check):
    check(cases.make(COUNTS, LENGTHS, value_dtype=torch.bfloat16))


def test_rows_of_no_user_are_zeros(check):
    assert (check(CASE)[sum(COUNTS) :] == 0).all()
    one = torch.zeros(1, dtype=torch.int32)
    assert (check(CASE._replace(cu_rows=one, cu_seqlens=one)) == 0).all()


@pytest.mark.parametrize("impl", ["cpu", "reference"])
@pytest.mark.parametrize("window", [None, 3])
def test_no_rows(window, impl):
    none = CASE._replace(
        query=CASE.query[:0],
        path=CASE.path[:0],
        tree_key=CASE.tree_key[:0],
        tree_value=CASE.tree_value[:0],
        cu_rows=torch.zeros_like(CASE.cu_rows),
    )
    assert tree_attention(*none, **BOUNDS, window=window, impl=impl).shape == (0, 6, 16)


def test_no_prompts(check):
    check(cases.make([2, 3], [0, 0], columns=4))


def test_entries_outside_the_tree_are_not_there(check):
    beyond = CASE._replace(path=torch.where(CASE.path < 0, CASE.tree_key.shape[0], CASE.path))
    assert torch.equal(check(beyond, within=CASE, window=9), check(CASE, window=9))


def test_autocast_changes_nothing(check):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check(CASE)


def test_no_value_is_read_on_the_host():
    """A fake tensor has none."""
    with FakeTensorMode() as mode:
        trees = [mode.from_tensor(x) for x in CASE]
        assert reference.tree_attention(*trees, **BOUNDS, window=9, softcap=2.0).shape == (21, 6, 16)


def changed(**changes):
    trees = cases.make([2, 1], [4, 3], columns=3, group=2)
    return trees._replace(**{name: change(getattr(trees, name)) for name, change in changes.items()}), {}


def told(**numbers):
    return cases.make([2, 1], [4, 3], columns=3, group=2), numbers


def i32(*values):
    return lambda _: torch.tensor(values, dtype=torch.int32)


BAD = {
    "query a list": (changed(query=lambda x: x.tolist()), TypeError, "query must be a floating-point tensor, got list"),
    "query of integers": (changed(query=lambda x: x.long()), TypeError, "query must be .*, got torch.int64"),
    "query flat": (changed(query=lambda x: x[0]), ValueError, r"query must have shape \(n, Hq, D\), got \(4, 16\)"),
    "query with gaps": (changed(query=lambda x: x.repeat(1, 1, 2)[..., ::2]), ValueError, "query: its last dimension"),
    "key of another type": (changed(key=lambda x: x.half()), TypeError, "key must be a torch.float32 tensor, got .*16"),
    "key too narrow": (changed(key=lambda x: x[..., :8]), ValueError, r"key must have shape \(R, Hk, 16\)"),
    "key elsewhere": (changed(key=lambda x: x.to("meta")), ValueError, "key must be on query's device cpu, got meta"),
    "heads that do not divide": (changed(key=lambda x: x.repeat(1, 2, 1)[:, :3]), ValueError, "query's 4, got 3"),
    "no heads": (changed(key=lambda x: x[:, :0]), ValueError, "key: its heads must divide query's 4, got 0"),
    "value too short": (changed(value=lambda x: x[:5]), ValueError, r"value must have shape \(12, 2, 16\), got \(5, "),
    "value of integers": (changed(value=lambda x: x.long()), TypeError, "value must be a floating-point tensor"),
    "tree_key of other heads": (changed(tree_key=lambda x: x[:, :1]), ValueError, r"tree_key must .* \(S, 2, 16\)"),
    "tree_value of another type": (changed(tree_value=lambda x: x.half()), TypeError, "tree_value must be a torch.fl"),
    "tree_value too short": (changed(tree_value=lambda x: x[:5]), ValueError, r"tree_value must .* \(12, 2, 16\)"),
    "no tree": (changed(tree_key=lambda x: x[:0], tree_value=lambda x: x[:0]), ValueError, "3 columns, 0 tree rows"),
    "path of int32": (changed(path=lambda x: x.int()), TypeError, "path must be a torch.int64 tensor, got torch.int32"),
    "path of other rows": (changed(path=lambda x: x[:4]), ValueError, r"path must have shape \(5, A\), got \(4, 3\)"),
    "path without columns": (changed(path=lambda x: x[:, :0]), ValueError, "a row is on its own path, got 0 columns"),
    "path with gaps": (changed(path=lambda x: x[:, ::2]), ValueError, "path: its last dimension must have stride 1"),
    "offsets of int64": (changed(cu_rows=lambda x: x.long()), TypeError, "cu_rows must be a torch.int32 tensor"),
    "no offsets": (changed(cu_rows=i32()), ValueError, "cu_rows must have at least one element, got none"),
    "other users": (changed(cu_seqlens=i32(0, 4)), ValueError, r"cu_seqlens must have shape \(3\), got \(2,\)"),
    "offsets that fall": (
        changed(cu_rows=i32(0, 3, 2)),
        ValueError,
        r"cu_rows must rise .* at most 5, got \[0, 3, 2\]",
    ),
    "offsets not from 0": (changed(cu_seqlens=i32(1, 3, 7)), ValueError, "cu_seqlens must rise from 0 to at most 12"),
    "offsets beyond": (changed(cu_seqlens=i32(0, 3, 13)), ValueError, "cu_seqlens must rise from 0 to at most 12"),
    "more rows": (told(max_rows=1), ValueError, "max_rows must be at least what cu_rows has, 2, got 1"),
    "longer prompts": (told(max_seqlen=3), ValueError, "max_seqlen must be at least what cu_seqlens has, 4, got 3"),
    "bound of a tensor": (told(max_rows=torch.tensor(4)), ValueError, "max_rows must be an integer from 0 up"),
    "no window": (told(window=0), ValueError, "window must be None or an integer from 1 up, got 0"),
    "no cap": (told(softcap=0.0), ValueError, "softcap must be None or positive, got 0.0"),
    "scale a tensor": (told(scale=torch.tensor(1.0)), TypeError, "scale must be a number, got Tensor"),
    "impl unknown": (
        told(impl="cuda"),
        ValueError,
        "impl must be one of 'auto', 'cpu', 'triton', 'reference', got 'cu",
    ),
    "gradient": (changed(query=lambda x: x.requires_grad_()), RuntimeError, "has no gradient; call it under torch.no"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    (trees, numbers), error, message = BAD[name]
    with pytest.raises(error, match=message):
        tree_attention(*trees, **BOUNDS | numbers)


def test_a_gradient_that_is_not_asked_for_is_no_error():
    trees, _ = changed(query=lambda x: x.requires_grad_())
    with torch.no_grad():
        assert not tree_attention(*trees, **BOUNDS).requires_grad


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter serves")
def test_triton_by_name_serves_or_raises():
    with pytest.raises(RuntimeError, match="impl='triton' cannot serve this call"):
        tree_attention(*CASE, **BOUNDS, impl="triton")


def test_who_serves():
    trees = cases.make(COUNTS, LENGTHS, dtype=torch.float64)
    assert torch.equal(tree_attention(*trees, **BOUNDS), tree_attention(*trees, **BOUNDS, impl="cpu"))
    assert choose("auto", "meta", torch.float32) == "reference"
    with pytest.raises(RuntimeError, match=r"impl='cpu' cannot serve .* got one on cuda"):
        choose("cpu", "cuda", torch.float32)
    with pytest.raises(RuntimeError, match="float64"):
        tree_attention(*trees, **BOUNDS, impl="triton")
