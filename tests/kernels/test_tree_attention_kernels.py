# SPDX-License-Identifier: Apache-2.0
"""`tree_attention`'s kernels against float64: on the GPU, or on the CPU by Triton's interpreter.

The interpreter truncates to bf16 where hardware rounds to nearest: 2^-7 for the weights and for the result.
"""

import random
from functools import partial

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="needs Triton: pip install triton")

from patchrec_kernels import tree_attention as kernels
from patchrec_kernels._launch import target

from patchrec_fast.ops.attention.tree import tree_attention
from tests.ops import trees as cases

ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-11}
COUNTS, LENGTHS = [5, 2, 0, 21], [70, 0, 1, 150]
BOUNDS = {"max_rows": 21, "max_seqlen": 300}
SMALL = {"counts": [3, 1], "lengths": [20, 0], "columns": 5}

pytestmark = pytest.mark.usefixtures("triton_serves", "poisoned")


@pytest.fixture
def make(device):
    return partial(cases.make, device=device)


def rounding(trees):
    value = trees.value.dtype
    return {"weight": 0.0 if value is torch.float32 else ROUNDING[value], "result": ROUNDING[value]}


def check(trees, splits=None, bounds=BOUNDS, scale=0.4, **rules):
    got = kernels.tree_attention(*trees, **bounds, scale=scale, splits=splits, **rules)
    assert got.dtype is trees.value.dtype
    cases.assert_within(got, cases.exact(trees, scale=scale, **rules, **rounding(trees)))
    return got


def test_the_case_has_three_tiles_of_rows_keys_and_path():
    block_m, block_n, *_ = kernels.tile(21 * 3, 16, 4, target("cpu"), 227 * 1024)
    assert (block_m, block_n) == (16, 64)
    assert block_m % 3, "tiles end within a row"
    assert COUNTS[3] * 3 > 2 * block_m
    assert LENGTHS[3] > 2 * block_n
    assert cases.make(COUNTS, LENGTHS).path.shape[1] > 2 * 16


@pytest.mark.parametrize(("dtype", "splits"), [*zip(ROUNDING, [4, 1, 2], strict=True)])
def test_rows_over_prompt_and_path(make, dtype, splits):
    check(make(COUNTS, LENGTHS, dtype=dtype), splits)


@pytest.mark.parametrize("window", [1, 7, 100, 1000])
def test_window(make, window):
    """Shorter than the path, shorter than the longest prompt, longer than both."""
    check(make(COUNTS, LENGTHS, key_heads=1), 2, window=window)


@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_window_and_softcap(make, dtype):
    check(make(COUNTS, LENGTHS, dtype=dtype, key_heads=1), window=20, softcap=1.5)


@pytest.mark.parametrize("group", [1, 3, 4, 20, 71])
@pytest.mark.parametrize("key_heads", [1, 2])
def test_groups(make, group, key_heads):
    """71: in five programs a row; of tiles of 16 queries nine make two rows, the fifth of both."""
    check(make(**SMALL, group=group, key_heads=key_heads), window=9)


@pytest.mark.parametrize("d", [1, 8, 24, 64, 96, 256])
def test_heads(make, d):
    check(make(**SMALL, group=2, d=d, dtype=torch.float16), scale=d**-0.5)


def test_queries_of_another_type_than_values(make):
    check(make(**SMALL, value_dtype=torch.bfloat16))
    check(make(**SMALL, dtype=torch.float16, value_dtype=torch.float32))


@pytest.mark.parametrize("splits", [2, 3, 7, 32])
def test_splits(make, splits):
    """32: more than there are keys in a prompt of 20. 3: one more than tiles of keys."""
    check(make([4, 2], [130, 20], columns=3, key_heads=1), splits)


@pytest.mark.parametrize("seed", range(12))
def test_random_shapes(make, seed):
    rng = random.Random(seed)
    users = rng.randint(1, 4)
    counts, lengths = (
        [rng.randint(0, 5) for _ in range(users)],
        [rng.choice([0, rng.randint(1, 90)]) for _ in range(users)],
    )
    dtype = list(ROUNDING)[seed % 3]
    heads = {"key_heads": rng.randint(1, 2), "group": rng.randint(1, 9), "d": rng.randint(1, 40)}
    trees = make(counts, lengths, columns=rng.randint(1, 20), dtype=dtype, seed=seed, **heads)
    rules = {"window": rng.choice([None, rng.randint(1, 90)]), "softcap": rng.choice([None, 2.0])}
    check(trees, rng.choice([None, rng.randint(1, 6)]), {"max_rows": 5, "max_seqlen": 90}, **rules)


def test_tight_and_loose_bounds_give_the_same(make):
    trees = make([6, 0, 2], [90, 3, 7], columns=3)
    tight = check(trees, 2, {"max_rows": 6, "max_seqlen": 90})
    assert torch.equal(check(trees, 2, {"max_rows": 1000, "max_seqlen": 10**6})[:8], tight[:8])


def test_large_logits_do_not_overflow(make):
    trees = make([3], [40], columns=3)
    trees.query.mul_(60)
    check(trees, 2, scale=1.0)


def test_rows_of_no_user_are_zeros(make):
    trees = make(**SMALL)
    assert (check(trees)[4:] == 0).all()
    one, three = trees.cu_rows.new_zeros(1), trees.cu_rows.new_zeros(3)
    assert (check(trees._replace(cu_rows=three), bounds={"max_rows": 0, "max_seqlen": 20}) == 0).all()
    assert (check(trees._replace(cu_rows=one, cu_seqlens=one)) == 0).all()


def test_no_rows_and_no_prompts(make):
    check(make([2, 3], [0, 0], columns=4), bounds={"max_rows": 3, "max_seqlen": 0})
    trees = make(**SMALL)
    none = trees._replace(query=trees.query[:0], path=trees.path[:0])
    assert kernels.tree_attention(*none, **BOUNDS, scale=1.0).shape == (0, 6, 16)


def test_the_same_buffers_hold_other_lengths(make):
    """What the replay of a graph does: the host's numbers stay."""
    first, second = make([4, 2, 0], [30, 1, 9], columns=6), make([0, 3, 3], [8, 0, 32], columns=6, seed=1)
    check(first, 2)
    for buffer, other in zip(first, second, strict=True):
        buffer.copy_(other)
    check(first, 2)


def test_nothing_outside_the_tensors_is_read(make):
    """Offsets and paths point beyond their ends, where everything is NaN."""
    rows, size = 50, 12
    whole = make([3, 4], [20, 30], columns=4)
    whole.path[whole.path >= size] = 1
    whole.tree_key[size:], whole.tree_value[size:] = torch.nan, torch.nan
    inside = whole._replace(
        query=whole.query[:7],
        key=whole.key[:rows],
        value=whole.value[:rows],
        tree_key=whole.tree_key[:size],
        tree_value=whole.tree_value[:size],
        path=whole.path[:7],
    )
    outside = inside.path.new_tensor([-(2**40), size, 2**40, -2]).repeat(7).view(7, 4)
    beyond = inside._replace(
        cu_seqlens=inside.cu_seqlens + inside.cu_seqlens.new_tensor([-3, 0, 4]),
        cu_rows=inside.cu_rows + inside.cu_rows.new_tensor([0, 0, 5]),
        path=torch.where(inside.path < 0, outside, inside.path),
    )
    got = kernels.tree_attention(*beyond, **BOUNDS, scale=0.4, window=25, splits=2)
    cases.assert_within(got, cases.exact(inside, scale=0.4, window=25, **rounding(inside)))


class Calls(TorchDispatchMode):
    """Notes what is called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **kwargs or {})


def test_the_device_is_asked_nothing(make, monkeypatch):
    """Around the launches there are allocations only."""
    launched = []

    class Launch:
        def __getitem__(self, grid):
            return lambda *args, **kwargs: launched.append(grid)

    monkeypatch.setattr(kernels, "read_prompts", Launch())
    monkeypatch.setattr(kernels, "read_paths", Launch())
    trees = make(**SMALL)
    with Calls() as calls:
        kernels.tree_attention(*trees, max_rows=100, max_seqlen=1000, scale=1.0, window=3, splits=4)
    assert calls.names <= {"new_empty", "empty", "fill_"}  # fill_: what `poisoned` does
    assert launched == [(2 * 2, 2, 4), (6, 2)]  # 18 queries are two tiles


def test_splits_fill_the_device():
    """An H200 has 132 multiprocessors, so 264 programs. 1,000 keys of 64 columns are 16 tiles of 64."""
    assert kernels.split_count(1, 1000, 64, 132) == 16  # one user, one head: the keys are the limit
    assert kernels.split_count(1, 10**6, 64, 132) == 32
    assert kernels.split_count(16 * 8, 1000, 64, 132) == 2
    assert kernels.split_count(10 * 8, 1000, 64, 132) == 3
    assert kernels.split_count(64 * 8, 1000, 64, 132) == 1
    assert kernels.split_count(0, 0, 64, 132) == 1


@pytest.mark.parametrize("seed", range(20))
def test_no_split_is_empty_and_none_too_many(seed):
    """Splits as `read_prompts` cuts them: whole tiles, as many in each as in the first, which are as few as can be."""
    rng = random.Random(seed)
    for _ in range(100):
        programs, keys, block_n = rng.randint(1, 600), rng.randint(1, 5000), rng.choice([16, 32, 64])
        splits, tiles = kernels.split_count(programs, keys, block_n, 132), -(-keys // block_n)
        share = -(-tiles // splits)
        assert (splits - 1) * share < tiles <= splits * share
        assert splits == 1 or splits * programs <= 264
        at_once = max(1, min(264 // programs, kernels.MOST_SPLITS))
        assert share == -(-tiles // min(tiles, at_once))


def test_auto_takes_the_kernel(make):
    trees = make(**SMALL)
    by_name = tree_attention(*trees, **BOUNDS, scale=0.4, impl="triton")
    if trees.query.device.type != "cpu":  # the interpreter is asked for by name
        assert torch.equal(tree_attention(*trees, **BOUNDS, scale=0.4), by_name)
    assert torch.equal(kernels.tree_attention(*trees, **BOUNDS, scale=0.4), by_name)
    assert not torch.equal(tree_attention(*trees, **BOUNDS, scale=0.4, impl="reference"), by_name)


def test_the_kernel_refuses_what_it_would_read_wrong(make):
    """Tangents, transforms, memory that was freed, signs that are pending."""
    trees = make(**SMALL)

    def call(**changes):
        return tree_attention(*trees._replace(**changes), **BOUNDS, scale=0.4, impl="triton")

    with pytest.raises(RuntimeError, match=r"not for torch\.func, forward-mode AD .* use impl='reference'"):
        torch.func.vmap(lambda query: call(query=query))(torch.stack([trees.query, trees.query]))
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=r"not for torch\.func, forward-mode AD"):
        call(value=forward_ad.make_dual(trees.value, trees.value))
    for name, x in trees._asdict().items():
        if x.is_floating_point():
            with pytest.raises(ValueError, match=f"{name} is a view with a pending negation"):
                call(**{name: torch._neg_view(x)})
        freed = x.clone()
        freed.untyped_storage().resize_(0)
        with pytest.raises(ValueError, match=f"{name} has a storage of 0 bytes"):
            call(**{name: freed})
    assert torch.equal(call(), kernels.tree_attention(*trees, **BOUNDS, scale=0.4))
