# SPDX-License-Identifier: Apache-2.0
"""The guard of the interpreter's memory says no: to a kernel made to be wrong, and to ours with a line changed."""

import importlib.util
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton: pip install triton")

import triton
import triton.language as tl
from patchrec_kernels import _tl, _tree, compress, tree_attention

from patchrec_fast.ops.compress.plan import make_plan

pytestmark = pytest.mark.usefixtures("interpreted")


@triton.jit
def copy(x_ptr, out_ptr, n, FROM: tl.constexpr, TO: tl.constexpr, STEP: tl.constexpr, MASKED: tl.constexpr):
    """out[i + TO] = x[i + FROM], eight at a time; programs are STEP elements apart."""
    at = tl.program_id(0) * STEP + tl.arange(0, 8)
    mask = (at < n) | (not MASKED)
    tl.store(out_ptr + at + TO, tl.load(x_ptr + at + FROM, mask=mask), mask=mask)


@triton.jit
def add_up(x_ptr, out_ptr):
    """A program's number times two, and what the others left: in the order in which they run."""
    tl.store(out_ptr, tl.load(out_ptr) * 2 + tl.load(x_ptr + tl.program_id(0)))


def launch(x, out, n=20, programs=3, FROM=0, TO=0, STEP=8, MASKED=True):
    copy[(programs,)](x, out, n, FROM=FROM, TO=TO, STEP=STEP, MASKED=MASKED)


def between():
    """Rows of 4 in rows of 6: what lies between is some other tensor's, though in one allocation."""
    return torch.arange(36.0).view(6, 6)[:, :4]


def test_a_right_kernel_is_let_be(guard):
    x, out = torch.arange(20.0), torch.full((20,), torch.nan)
    launch(x, out)
    assert torch.equal(out, x)
    assert (guard.launches, guard.programs, guard.loads, guard.stores) == (1, 6, 40, 40)  # each program twice
    launch(x[5:15], out[5:15], n=10, programs=2, FROM=0)
    launch(torch.arange(40.0).view(2, 20).T[0], out, n=1, programs=1)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"FROM": 1}, "outside x_ptr: 1 addresses, the first 80 bytes from the start"),
        ({"FROM": -1}, "outside x_ptr: 1 addresses, the first -4 bytes"),
        ({"TO": 1}, "outside out_ptr: 1 addresses, the first 80 bytes"),
        ({"TO": -1}, "outside out_ptr: 1 addresses, the first -4 bytes"),
        ({"MASKED": False}, "outside x_ptr: 4 addresses"),
        ({"FROM": 2**40}, "outside x_ptr"),
        ({"STEP": 7}, "out_ptr: written by different programs"),
    ],
)
def test_a_wrong_kernel_is_caught(wrong, words):
    """x is in the middle of its memory: the neighbours are there to be read."""
    x, out = torch.arange(100.0)[40:60], torch.zeros(100)[40:60]
    with pytest.raises(triton.runtime.errors.InterpreterError, match=words):
        launch(x, out, **wrong)


def test_gaps_between_rows_are_outside():
    x, out = between(), torch.zeros(6)
    with pytest.raises(triton.runtime.errors.InterpreterError, match="outside x_ptr: 2 addresses, the first 16 bytes"):
        launch(x, out, n=6, programs=1)
    launch(x.T, out, n=4, programs=1)


def test_another_program_s_result_may_not_be_read():
    out = torch.ones(20)
    with pytest.raises(triton.runtime.errors.InterpreterError, match="written by different programs"):
        launch(out, out, n=16, programs=2, TO=4)
    launch(out, out)  # each element by one program


def test_an_order_that_matters_is_caught(guard, monkeypatch):
    """Also without the look at who writes what."""
    monkeypatch.setattr(guard, "writing", lambda pointers, mask, size: guard._translated(pointers, mask, size)[0])
    monkeypatch.setattr(guard, "reading", guard.writing)
    with pytest.raises(AssertionError, match="add_up: programs in another order give other bits"):
        add_up[(8,)](torch.arange(8.0), torch.zeros(1))


def test_what_nobody_wrote_is_not_read():
    """Of memory that the kernels' package allocates."""
    x, out = torch.arange(20.0), torch.zeros(20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "__name__", "patchrec_kernels.test")
        fresh, other = torch.empty(20), x.new_empty(20)
    launch(x, fresh, n=19)
    launch(fresh, out, n=19)
    for memory in (fresh, other):
        with pytest.raises(triton.runtime.errors.InterpreterError, match="loads of what nobody wrote"):
            launch(memory, out)


def attend():
    """Two users, groups of three over two key heads, 24 columns in tiles of 32: nothing is behind the last row."""
    torch.manual_seed(0)
    query, (key, value), (tree_key, tree_value) = (
        torch.randn(5, 6, 24),
        torch.randn(2, 23, 2, 24),
        torch.randn(2, 7, 2, 24),
    )
    path = torch.tensor([[2, -1, -1], [2, 3, -1], [6, -1, -1], [6, 5, -1], [6, 5, 4]])
    cu_seqlens, cu_rows = torch.tensor([0, 20, 23], dtype=torch.int32), torch.tensor([0, 2, 5], dtype=torch.int32)
    tree_attention.tree_attention(
        query, key, value, cu_seqlens, tree_key, tree_value, path, cu_rows,
        max_rows=3, max_seqlen=20, scale=0.2, window=18, splits=2,
    )  # fmt: skip


def pool():
    """Single tokens, items, and a token of two chunks, forward and backward, 100 columns in tiles of 128."""
    ids = torch.cat([torch.arange(12), torch.full((140,), 11)])
    offsets = torch.tensor([0, 1, 2, 3, 12, 152])
    weight = torch.randn(12, 100)
    plan = make_plan(ids, offsets)
    compress.compress_backward_(weight, compress.compress(weight, ids, plan), plan)


MUTANTS = [
    (_tree, "key_ptr + row * key_stride", "key_ptr + 1 + row * key_stride", "outside"),
    (_tree, "query_ptr + row.to", "query_ptr - 1 + row.to", "outside"),
    (_tree, "target = out_ptr +", "target = out_ptr + 1 +", "outside"),
    (_tree, "mean_ptr + target[:, None] * D", "mean_ptr + 1 + target[:, None] * D", "outside"),
    (_tree, "mask = there[:, None] & (columns < D)", "mask = there[:, None] & (columns < 99)", "outside"),
    (_tree, "mask = there[:, None] &", "mask = (at == at)[:, None] &", "outside"),
    (_tree, "mask=(g < GROUP)[:, None] & in_row", "mask=(g < 99)[:, None] & in_row", "outside|written by"),
    (_tree, "mask=a < path_columns, other=-1)", "mask=a < 99, other=-1)", "outside"),
    (_tree, "target, lse, mask=inside", "target, lse, mask=inside & (m < 3)", "nobody wrote"),
    (_tree, "for split in range(splits):", "for split in range(splits + 1):", "outside"),
    (_tl, "index_ptr + t, mask=inside", "index_ptr + t + 1, mask=inside", "outside"),
    (_tl, "inside = t < end", "inside = t < end + 9", "outside"),
    (_tl, "mask = inside[:, None] & (columns < D)", "mask = inside[:, None] & (columns < 999)", "outside"),
    (_tl, "target = out_ptr + row * D + columns\n", "target = out_ptr + row * D + columns + 1\n", "outside|written by"),
    (_tl, "mask=columns < D, cache_modifier", "mask=columns < 999, cache_modifier", "outside|written by"),
    (_tl, "partial_ptr + slot * D + columns", "partial_ptr + slot + columns", "written by"),
    (_tl, "columns, total, mask=columns < D", "columns, total, mask=columns < 9", "nobody wrote"),
]  # fmt: skip


@pytest.mark.parametrize("case", [None, *MUTANTS], ids=lambda case: case and f"{case[0].__name__[-5:]} {case[1]}")
def test_a_changed_kernel_is_caught(case, tmp_path, monkeypatch):
    """The file with one text in place of another, in all its places."""
    if case is None:
        attend()
        pool()
        return
    module, old, new, words = case
    source, path = Path(module.__file__).read_text(), tmp_path / "changed.py"
    assert old in source
    path.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location("changed", path)
    changed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(changed)
    launcher, call = (tree_attention, attend) if module is _tree else (compress, pool)
    for name in ("read_prompts", "read_paths", "sum_rows", "copy_rows", "sum_groups"):
        if hasattr(changed, name):
            monkeypatch.setattr(launcher, name, getattr(changed, name))
    with pytest.raises(triton.runtime.errors.InterpreterError, match=words):
        call()
