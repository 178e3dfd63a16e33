# SPDX-License-Identifier: Apache-2.0
"""Bad input is a clear error on every backend, and nothing is read or written through it."""

import pytest
import torch

import patchrec_fast as pf
from patchrec_fast.ops import native
from patchrec_fast.ops.compress import make_plan
from patchrec_fast.testing import ragged_batch

V, D = 11, 6


def i32(*values):
    return torch.tensor(values, dtype=torch.int32)


IDS = i32(0, 10, 3, 3)
TOKENS, ITEMS = i32(0, 1, 4), i32(0, 2)
WEIGHT = torch.randn(V, D)

BAD = {
    "negative id": (i32(0, -1, 3, 3), TOKENS, WEIGHT, ValueError, r"ids must be in \[0, 11\), got -1 at position 1"),
    "id past the table": (i32(0, 11, 3, 3), TOKENS, WEIGHT, ValueError, r"got 11 at position 1"),
    "id past int32": (torch.tensor([0, 2**32, 3, 3]), TOKENS, WEIGHT, ValueError, r"got 4294967296 at position 1"),
    "offsets not from 0": (IDS, i32(1, 2, 4), WEIGHT, ValueError, "offsets must start at 0, got 1"),
    "offsets decreasing": (IDS, i32(0, 3, 2, 4), WEIGHT, ValueError, "must not decrease, got 3 then 2 at position 2"),
    "offsets negative": (IDS, i32(0, -5, 4), WEIGHT, ValueError, "must not decrease, got 0 then -5"),
    "offsets short": (IDS, i32(0, 3), WEIGHT, ValueError, r"must end at len\(ids\) = 4, got 3"),
    "offsets long": (IDS, i32(0, 5), WEIGHT, ValueError, r"must end at len\(ids\) = 4, got 5"),
    "no offsets": (IDS, i32(), WEIGHT, ValueError, "must have at least one element"),
    "item offsets not from 0": (IDS, (TOKENS, i32(1, 2)), WEIGHT, ValueError, r"offsets\[1\] .* start at 0, got 1"),
    "item offsets long": (IDS, (TOKENS, i32(0, 3)), WEIGHT, ValueError, r"the number of items = 2, got 3"),
    "item offsets decreasing": (IDS, (TOKENS, i32(0, 2, 1, 2)), WEIGHT, ValueError, r"offsets\[1\] .* not decrease"),
    "no item offsets": (IDS, (TOKENS, i32()), WEIGHT, ValueError, r"offsets\[1\] .* at least one element"),
    "float ids": (IDS.float(), TOKENS, WEIGHT, TypeError, "ids must be int32 or int64, got torch.float32"),
    "bool ids": (IDS.bool(), TOKENS, WEIGHT, TypeError, "ids must be int32 or int64, got torch.bool"),
    "int16 offsets": (IDS, TOKENS.short(), WEIGHT, TypeError, "offsets must be int32 or int64, got torch.int16"),
    "ids a list": ([0, 1], TOKENS, WEIGHT, TypeError, "ids must be a 1-D int32 or int64 tensor, got list"),
    "offsets a number": (IDS, 4, WEIGHT, TypeError, "offsets must be a tensor or a pair"),
    "three offsets": (IDS, (TOKENS, ITEMS, ITEMS), WEIGHT, TypeError, "offsets must be a tensor or a pair .* of 3"),
    "2-D ids": (IDS.view(2, 2), TOKENS, WEIGHT, ValueError, r"ids must be 1-D, got shape \(2, 2\)"),
    "2-D offsets": (IDS, TOKENS.view(1, 3), WEIGHT, ValueError, r"offsets must be 1-D"),
    "1-D weight": (IDS, TOKENS, WEIGHT[0], ValueError, r"weight must be 2-D \(V, d\), got shape \(6,\)"),
    "integer weight": (IDS, TOKENS, WEIGHT.long(), TypeError, "weight must be floating point, got torch.int64"),
    "weight a list": (IDS, TOKENS, [[1.0]], TypeError, "weight must be a tensor"),
    "weight elsewhere": (IDS, TOKENS, WEIGHT.to("meta"), ValueError, "weight must be on ids' device cpu, got meta"),
    "offsets elsewhere": (IDS, TOKENS.to("meta"), WEIGHT, ValueError, "offsets must be on ids' device cpu, got meta"),
    "empty table": (IDS, TOKENS, WEIGHT[:0], ValueError, r"ids must be in \[0, 0\), got 0"),
}
OF_VALUES = (
    *("negative", "id past", "no ", "item offsets", "empty table"),
    *("offsets not from 0", "offsets decreasing", "offsets negative", "offsets short", "offsets long"),
)


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("name", BAD)
def test_forward(name, impl):
    ids, offsets, weight, error, message = BAD[name]
    with pytest.raises(error, match=message):
        pf.compress(ids, offsets, weight, impl=impl)


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("name", [name for name in BAD if name.startswith(OF_VALUES)])
def test_backward_operators(name, impl):
    """Called by themselves they check values too, before they write."""
    ids, offsets, weight, _, message = BAD[name]
    levels = offsets if isinstance(offsets, tuple) else (offsets, None)
    rows = levels[0] if levels[1] is None else levels[1]
    grad = torch.ones(max(rows.numel() - 1, 0), D)
    into = torch.zeros_like(weight)
    ops = torch.ops.patchrec_fast
    for call in (
        lambda: ops.compress_backward(grad, ids, *levels, weight.shape[0], [], impl),
        lambda: ops.compress_backward_sparse(grad, ids, *levels, weight.shape[0], [], impl),
        lambda: ops.compress_backward_(into, grad, ids, *levels, [], impl),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert not into.any()


def test_a_gradient_of_another_size():
    if native.why_not():
        pytest.skip(native.why_not())
    with pytest.raises(ValueError, match=r"grad must be \(2, d\), got shape \(3, 6\)"):
        torch.ops.patchrec_fast.compress_backward(torch.ones(3, D), IDS, TOKENS, None, V, [], "cpu")


def test_a_plan_of_another_batch():
    batch = ragged_batch(9, V)
    weight = torch.randn(V, D)
    plan = make_plan(batch.ids, batch.offsets)
    expected = pf.compress(batch.ids, batch.offsets, weight)
    assert torch.equal(pf.compress(batch.ids, batch.offsets, weight, plan=plan), expected)
    with pytest.raises(ValueError, match="plan must be this batch's, of 4 tokens and 2 rows"):
        pf.compress(IDS, TOKENS, weight, plan=plan)
    with pytest.raises(ValueError, match=rf"ids must be in \[0, 3\), got {int(batch.ids.max())}"):
        pf.compress(batch.ids, batch.offsets, weight[:3], plan=plan)
    with pytest.raises(ValueError, match="plan must be on ids' device cpu, got meta"):
        pf.compress(batch.ids, batch.offsets, weight, plan=plan.to("meta"))


def test_distributed_tensors_are_refused():
    class DTensor(torch.Tensor):
        pass

    with pytest.raises(TypeError, match="weight is a DTensor, one shard of a table; pass its embedding module"):
        pf.compress(IDS, TOKENS, WEIGHT.as_subclass(DTensor))
