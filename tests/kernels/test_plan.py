# SPDX-License-Identifier: Apache-2.0
"""Plans against one made with loops, and plans made on a device against plans made on the host."""

import itertools
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from patchrec_fast.ops.compress import plan as module
from patchrec_fast.ops.compress.plan import CHUNK, UNUSED, Plan, make_plan, plan_on_device


def csr(lengths):
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int64)


def batch(ids, tokens_in_items, items_in_rows=None):
    """ids, token offsets, item offsets (None: one level) from lengths."""
    ids = torch.as_tensor(ids, dtype=torch.int64)
    items = None if items_in_rows is None else csr(items_in_rows)
    return ids, csr(tokens_in_items), items


def host_plan(ids, tokens, items):
    return make_plan(ids, tokens if items is None else (tokens, items))


def looped(ids, tokens, items):
    """Every field as a list, by the words of Plan's docstring and nothing else."""
    ids, tokens = ids.tolist(), tokens.tolist()
    items = list(range(len(tokens))) if items is None else items.tolist()
    row_offsets, weights, rows_of, single, lengths = [0], [], [], [], []
    for row, (first, last) in enumerate(itertools.pairwise(items)):
        for item in range(first, last):
            size = tokens[item + 1] - tokens[item]
            for _ in range(size):
                weights.append(float(np.float32(1.0 / (size * (last - first)))))
                rows_of.append(row)
        row_offsets.append(len(weights))
        lengths.append(row_offsets[-1] - row_offsets[-2])
        if last - first == 1 and lengths[-1] == 1:
            single.append(row)
    long_rows = [row for row in range(len(lengths)) if row not in single]
    long_rows.sort(key=lambda row: -lengths[row])

    grad, chunk_offsets, chunk_unit, merge_offsets, merge_unit = [], [0], [], [0], []
    unique_ids = sorted(set(ids))
    for unit, wanted in enumerate(unique_ids):
        mine = [t for t, found in enumerate(ids) if found == wanted]
        grad += mine
        pieces = [mine[at : at + CHUNK] for at in range(0, len(mine), CHUNK)]
        for number, piece in enumerate(pieces):
            chunk_offsets.append(chunk_offsets[-1] + len(piece))
            chunk_unit.append(unit if len(pieces) == 1 else -1 - (merge_offsets[-1] + number))
        if len(pieces) > 1:
            merge_offsets.append(merge_offsets[-1] + len(pieces))
            merge_unit.append(unit)
    return Plan(
        row_offsets, weights, long_rows, single,
        [rows_of[t] for t in grad], [weights[t] for t in grad], chunk_offsets, chunk_unit,
        unique_ids, merge_offsets, merge_unit, max_id=max(ids, default=-1),
    )  # fmt: skip


def lists(plan):
    return [tensor.tolist() for tensor in plan.tensors()]


def trimmed(plan):
    """A padded plan without its padding, rows ordered as the host orders them."""
    units = int((plan.unique_ids >= 0).sum())
    chunks = int((plan.chunk_unit != UNUSED).sum())
    merges = int((plan.merge_unit >= 0).sum())
    kept = int(plan.chunk_offsets[chunks])
    assert (plan.unique_ids[units:] == -1).all()
    assert (plan.chunk_unit[chunks:] == UNUSED).all()
    assert (plan.merge_unit[merges:] == -1).all()
    assert (plan.chunk_offsets[chunks:] == kept).all()
    assert (plan.merge_offsets[merges:] == plan.merge_offsets[merges]).all()
    return replace(
        plan,
        grad_rows=plan.grad_rows[:kept],
        grad_weight=plan.grad_weight[:kept],
        chunk_offsets=plan.chunk_offsets[: chunks + 1],
        chunk_unit=plan.chunk_unit[:chunks],
        unique_ids=plan.unique_ids[:units],
        merge_offsets=plan.merge_offsets[: merges + 1],
        merge_unit=plan.merge_unit[:merges],
    )


def assert_same(device_plan, host):
    """Equal but for padding and for how rows are shared out."""
    got, exact = trimmed(device_plan), lists(host)
    assert got.long_rows.tolist() == list(range(host.row_offsets.numel() - 1))
    assert got.single_rows.numel() == 0
    assert lists(got)[:2] + lists(got)[4:] == exact[:2] + exact[4:]


HOT = 3 * CHUNK + 5
EDGES = {
    "nothing": batch([], [], []),
    "nothing, one level": batch([], []),
    "rows without items": batch([], [], [0, 0, 0]),
    "items without tokens": batch([], [0, 0, 0], [2, 1]),
    "one token": batch([7], [1], [1]),
    "a token beside an empty item is no copy": batch([7, 8], [1, 0, 1], [2, 1]),
    "all distinct": batch(range(300), [3] * 100, [4] * 25),
    "one hot id": batch([5] * HOT, [HOT], [1]),
    "chunk edges": batch([1] * CHUNK + [2] * (CHUNK + 1) + [3] * 2 * CHUNK, [4 * CHUNK + 1]),
    "long ids between short ones": batch([9, *[4] * HOT, 2, *[6] * HOT, 9], [2 * HOT + 3]),
    "one level": batch([3, 1, 3, 3], [2, 0, 1, 1]),
}


@pytest.mark.parametrize("edge", EDGES)
def test_make_plan_is_the_looped_one(edge):
    ids, tokens, items = EDGES[edge]
    made, expected = host_plan(ids, tokens, items), looped(*EDGES[edge])
    assert lists(made) == [getattr(expected, name) for name in list(Plan.__slots__)[:-1]]
    assert made.max_id == expected.max_id
    assert made.partials == made.merge_offsets[-1]
    assert not made.padded
    kinds = {tensor.dtype for tensor in made.tensors()}
    assert kinds <= {torch.int32, torch.float32}


@pytest.fixture(scope="session")
def plan_there(device):
    """`plan_on_device` on the GPU where there is one, its plan on the CPU."""

    def make(*batch_and_size):
        there = (x.to(device) if isinstance(x, torch.Tensor) else x for x in batch_and_size)
        return plan_on_device(*there).to("cpu")

    return make


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("V", [10, 10_000])
def test_plan_on_device_is_the_host_plan(plan_there, edge, V):
    ids, tokens, items = EDGES[edge]
    V = max(V, int(ids.max()) + 1 if ids.numel() else 0)
    made = plan_there(ids, tokens, items, V)
    assert_same(made, host_plan(ids, tokens, items))
    assert made.padded
    assert made.partials >= int(made.merge_offsets[-1])


@settings(max_examples=60, deadline=None)
@given(
    items=st.lists(st.lists(st.integers(0, 40), max_size=4), max_size=8),
    values=st.sampled_from([1, 2, 5, 400]),
    two_levels=st.booleans(),
    wide=st.booleans(),
    seed=st.integers(0, 99),
)
def test_plans_agree_on_any_batch(plan_there, items, values, two_levels, wide, seed):
    lengths = [size for row in items for size in row]
    ids = np.random.default_rng(seed).integers(0, values, sum(lengths))
    ids, tokens, rows = batch(ids, lengths, [len(row) for row in items] if two_levels else None)
    if not wide:
        ids, tokens, rows = ids.int(), tokens.int(), None if rows is None else rows.int()
    made, expected = host_plan(ids, tokens, rows), looped(ids, tokens, rows)
    assert lists(made) == [getattr(expected, name) for name in list(Plan.__slots__)[:-1]]
    assert_same(plan_there(ids, tokens, rows, values), made)


@pytest.mark.parametrize("T", [0, 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 2, 1290, 5000])
@pytest.mark.parametrize("n", [1, CHUNK, CHUNK + 1, 2 * CHUNK + 1])
@pytest.mark.parametrize("V", [1, 7, 10_000])
def test_bounds_hold_where_they_are_tightest(plan_there, T, n, V):
    """n tokens of each id in turn, up to V ids: CHUNK + 1 of each makes the most partials."""
    ids = (torch.arange(T) // n).clamp(max=V - 1)
    assert_same(plan_there(ids, csr([T]), None, V), make_plan(ids, csr([T])))


def test_ids_outside_the_table_take_no_part_in_the_gradient(plan_there):
    ids, tokens, items = batch([3, -1, 5, 9, 2**40, 3], [2, 1, 3], [1, 2])
    made = trimmed(plan_there(ids, tokens, items, 9))
    assert made.unique_ids.tolist() == [3, 5]
    assert made.grad_rows.tolist() == [0, 1, 1]
    assert made.row_offsets.tolist() == [0, 2, 6]  # the forward sees the ids for itself


@pytest.mark.parametrize(
    ("tokens", "items", "marked", "grouped"),
    [
        ([0, 2, 1, 4, 6], None, [1, 2], 4),  # falls: the fall and what overlaps row 0
        ([0, 9, 3, 4, 6], None, [0, 1], 3),
        ([0, 2, -3, 4, 6], None, [1, 2], 4),
        ([1, 2, 3, 4, 6], None, [0], 4),  # tokens 0 and 1: no row has the first
        ([0, 2, 3, 4, 5], None, [3], 4),  # token 5 is in no row
        ([0, 2, 3, 4, 7], None, [3], 4),
        ([0, 2, 3, 4, 6], [0, 3, 1, 4], [1, 2], 4),
        ([0, 2, 3, 4, 6], [0, 1, 9, 4], [1, 2], 2),
        ([0, 2, 3, 4, 6], [1, 2, 3, 4], [0], 3),
        ([0, 2, 1, 4, 6], [0, 1, 2, 4], [1, 2], 2),  # an item's fault marks its row
        ([0, 5, 1, 4, 6], [0, 0, 3, 4], [1, 2], 0),  # a row without items has no fault
        ([2**40, -(2**40), 3, 4, 6], None, [0, 1], 3),
    ],
)
def test_malformed_offsets_mark_their_rows(plan_there, tokens, items, marked, grouped):
    ids = torch.arange(6)
    tokens = torch.tensor(tokens)
    items = None if items is None else torch.tensor(items)
    made = plan_there(ids, tokens, items, 10)
    rows = (tokens if items is None else items).numel() - 1
    starts = made.row_offsets[:-1]
    assert [row for row in range(rows) if starts[row] < 0] == marked
    decoded = torch.where(made.row_offsets < 0, ~made.row_offsets, made.row_offsets)
    assert ((decoded >= 0) & (decoded <= 6)).all()
    edges = tokens if items is None else tokens[items.clamp(0, 4)]
    for row in set(range(rows)) - set(marked):
        assert decoded[row : row + 2].tolist() == edges[row : row + 2].tolist()
    kept = trimmed(made).grad_rows
    assert kept.numel() == grouped
    assert not set(kept.tolist()) & set(marked)


def test_gradient_is_left_out_on_request():
    ids, tokens, items = EDGES["all distinct"]
    whole, half = (plan_on_device(ids, tokens, items, 300, gradient=g) for g in (True, False))
    assert lists(half)[:4] == lists(whole)[:4]
    assert half.grad_rows.numel() == half.chunk_unit.numel() == 0


class NoSync(TorchDispatchMode):
    """Raises where a CUDA tensor would make the host wait."""

    waits = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "item", "is_nonzero",
             "repeat_interleave.Tensor", "bincount", "equal")  # fmt: skip

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(wait in str(func).removeprefix("aten.") for wait in self.waits):
            raise AssertionError(f"{func} waits for the device")
        for index in args[1] if str(func).startswith("aten.index.") else ():
            assert index.dtype is not torch.bool, "indexing by a mask waits for the device"
        return func(*args, **(kwargs or {}))


def test_no_operation_on_the_device_waits_for_it():
    with NoSync(), pytest.raises(AssertionError, match="waits"):
        torch.arange(3).sum().item()
    for ids, tokens, items in EDGES.values():
        with NoSync():
            plan_on_device(ids, tokens, items, 500)


@pytest.mark.parametrize("one_level", [True, False])
def test_everything_is_made_on_the_ids_device_from_shapes_alone(one_level):
    """Tensors without contents: a size that depends on one, or a CPU tensor among them, raises."""
    ids = torch.empty(1000, dtype=torch.int32, device="meta")
    tokens = torch.empty(41, dtype=torch.int64, device="meta")
    items = None if one_level else torch.empty(11, dtype=torch.int32, device="meta")
    made = plan_on_device(ids, tokens, items, 600)
    assert all(tensor.is_meta for tensor in made.tensors())
    assert made.chunk_unit.numel() == 600 + 1000 // CHUNK


IDS, OFFSETS = torch.arange(4), torch.tensor([0, 1, 4])


@pytest.mark.parametrize(
    ("ids", "offsets", "error", "words"),
    [
        (IDS.double(), OFFSETS, TypeError, "ids: got float64, expected int32 or int64"),
        ([1, 2], OFFSETS, TypeError, "ids: got list"),
        (IDS.to("meta"), OFFSETS, TypeError, "ids: got a tensor on meta"),
        (IDS.reshape(2, 2), OFFSETS, ValueError, r"ids: got shape \(2, 2\)"),
        (torch.tensor([1, -7, 3, 4]), OFFSETS, ValueError, "ids: got -7 at position 1"),
        (torch.tensor([1, 2, 3, 2**31]), OFFSETS, ValueError, "largest id: got 2147483648"),
        (IDS, OFFSETS.float(), TypeError, "offsets: got float32"),
        (IDS, OFFSETS[:0], ValueError, r"offsets: got \[\] first, expected 0"),
        (IDS, OFFSETS + 1, ValueError, r"offsets: got \[1\] first, expected 0"),
        (IDS, torch.tensor([0, 3, 2, 4]), ValueError, r"got \[3, 2\] at position 1"),
        (IDS, torch.tensor([0, 3]), ValueError, "got 3 last, expected 4, the number of ids"),
        (IDS, (OFFSETS, torch.tensor([0, 3])), ValueError, r"offsets\[1\]: got 3 last, expected 2"),
        (IDS, (OFFSETS,), ValueError, "got 1 of them, expected one or a pair"),
        (IDS, (OFFSETS, [0, 2]), TypeError, r"offsets\[1\]: got list"),
    ],
)
def test_bad_input_is_named(ids, offsets, error, words):
    with pytest.raises(error, match=words):
        make_plan(ids, offsets)


def test_sizes_that_int32_cannot_hold_are_refused(monkeypatch):
    monkeypatch.setattr(module, "LIMIT", 4)
    with pytest.raises(ValueError, match="ids: got 4, expected less than 4"):
        make_plan(IDS, OFFSETS)
    with pytest.raises(ValueError, match="num_embeddings: got 9"):
        plan_on_device(IDS[:3], OFFSETS, None, 9)
    with pytest.raises(ValueError, match="token_offsets: got no element"):
        plan_on_device(IDS[:3], OFFSETS[:0], None, 3)


def test_a_plan_moves_whole():
    made = make_plan(IDS, OFFSETS)
    for copy in (made.to("cpu"), pickle.loads(pickle.dumps(made))):
        assert lists(copy) == lists(made)
        assert copy.max_id == 3
    assert all(tensor.is_meta for tensor in made.to("meta", non_blocking=True).tensors())
    assert lists(Plan.from_tensors(made.tensors())) == lists(made)
    with pytest.raises(ValueError, match="got 3 tensors, expected 11"):
        Plan.from_tensors(made.tensors()[:3])


def test_arrays_and_strided_tensors_are_taken():
    spread = torch.arange(8).int()[::2]
    made = make_plan(spread, OFFSETS)
    assert lists(made) == lists(make_plan(spread.numpy(), OFFSETS.numpy()))
    assert_same(plan_on_device(spread, OFFSETS, None, 8), made)
