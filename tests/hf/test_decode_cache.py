# SPDX-License-Identifier: Apache-2.0
"""What caches hold, without a model: copies, memory that stays, and chains against the same rows by their paths."""

import numpy as np
import pytest
import torch

from patchrec_fast.hf.decode_cache import Chain, DynamicCache, Parent, Rows, StaticCache

CPU = torch.device("cpu")
WHOLE = Parent(0, None)


def rows(count, seed, heads=2, width=8):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, heads, width, generator=generator), torch.randn(count, heads, width, generator=generator)


def test_a_copy_holds_its_own_rows():
    """And no more memory than it says, and nothing of the next batch."""
    cache = StaticCache(2, 20, 12, 6, CPU)
    cache.reset([5, 3], [WHOLE] * 2)
    key, value = rows(8, 0)
    cache.update(0, key, value)
    copies = [cache.prompt(1), cache.prompt(0, 2)]
    cache.reset([9], [WHOLE])
    cache.update(0, *rows(9, 1))
    for copy, part in zip(copies, [slice(5, 8), slice(0, 2)], strict=True):
        for found, whole in zip(copy.layers[0], (key, value), strict=True):
            assert torch.equal(found, whole[part])
        assert copy.bytes == sum(x.untyped_storage().nbytes() for x in copy.layers[0])


def test_static_memory_stays():
    """Whatever the batches, longer ones too; the numbers in the paths say where a row goes."""
    cache, places, paths = StaticCache(2, 20, 12, 6, CPU), set(), torch.full((2, 3), -1)
    for seed, lengths in enumerate([[2], [12, 8], [1, 1]]):
        cache.reset(lengths, [WHOLE] * len(lengths))
        key, value = rows(sum(lengths), seed)
        cache.update(0, key, value)
        paths.copy_(torch.tensor([[seed, -1, -1], [seed, seed + 3, -1]]))
        cache.begin(Rows(paths, torch.tensor([0, 1, 2], dtype=torch.int32), 1))
        k, v = rows(2, seed + 10)
        cache.attend(0, *(x.transpose(0, 1).unsqueeze(0) for x in (k, k, v)), 1.0, None, None)
        cache.end()
        held = [*cache._prompts.layers[0], *cache._tree.layers[0], cache.cu_seqlens]
        places.add(tuple(x.data_ptr() for x in held))
        assert torch.equal(held[0][: len(key)], key)
        assert torch.equal(held[3][[seed, seed + 3]], v)
        assert cache.cu_seqlens.tolist() == [0, lengths[0], sum(lengths)]
    assert len(places) == 1


@pytest.mark.parametrize("lengths", [[1] * 3, [13], [11, 10]], ids=str)
def test_no_room(lengths):
    cache = StaticCache(2, 20, 12, 6, CPU)
    assert not cache.fits(lengths)
    with pytest.raises(ValueError, match=r"lengths: .* have no room: expected at most \(2, 20, 12\)"):
        cache.reset(lengths, [WHOLE] * len(lengths))


@pytest.mark.parametrize("seed", range(10))
def test_parents(seed):
    """Rows that are held come before those of the call."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 12, 3).tolist()
    whole = [rows(length, 100 * seed + nth) for nth, length in enumerate(lengths)]
    whole[1] = tuple(torch.cat([first[:3], own[3:]]) for first, own in zip(whole[0], whole[1], strict=True))
    earlier = DynamicCache([lengths[2]], CPU)
    earlier.update(0, *whole[2])
    seen = int(rng.integers(1, lengths[2]))
    cache = DynamicCache(lengths, CPU, [WHOLE, Parent(3, None), Parent(seen, earlier.prompt(0))])
    read = [
        torch.cat([part[at:] for part, at in zip(parts, [0, 3, seen], strict=True)])
        for parts in zip(*whole, strict=True)
    ]
    for found, parts in zip(cache.update(0, *read), zip(*whole, strict=True), strict=True):
        assert torch.equal(found, torch.cat(parts))


@pytest.mark.parametrize("rules", [(None, None), (6, None), (None, 2.0)], ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_chains(seed, rules):
    """Below rows that were read before."""
    rng = np.random.default_rng(seed)
    lengths, before, sizes = rng.integers(1, 9, 2).tolist(), 4, rng.integers(1, 7, 2).tolist()
    caches = [DynamicCache(lengths, CPU) for _ in range(2)]
    first = [[2], [2, 3], [4], [4, 5]]  # two rows of each user, one below the other
    above, start = [[2, 3][: rng.integers(3)], [4, 5][: rng.integers(3)]], 2 + before
    paths = [[*above[0], *range(start, start + n + 1)] for n in range(sizes[0])]
    paths += [[*above[1], *range(start + sizes[0], start + sizes[0] + n + 1)] for n in range(sizes[1])]
    found = []
    for cache in caches:
        cache.update(0, *rows(sum(lengths), seed))
        out = []
        for step, some in enumerate((first, paths)):
            counts = [2, 2] if step == 0 else sizes
            longest = max(map(len, some))
            path = torch.tensor([each + [-1] * (longest - len(each)) for each in some])
            told = Rows(path, torch.tensor([0, counts[0], sum(counts)], dtype=torch.int32), max(counts))
            chains = [Chain(user, torch.tensor(above[user]).long(), sizes[user]) for user in range(2)]
            cache.begin(chains if step and cache is caches[1] else told)
            (k, v), (q, _) = rows(len(some), 10 + step), rows(len(some), 20 + step, heads=4)
            out.append(cache.attend(0, *(x.transpose(0, 1).unsqueeze(0) for x in (q, k, v)), 0.4, *rules))
            cache.end()
        assert cache.count == start + sum(sizes)
        found.append(out[1])
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


def test_rows_come_after_prompts():
    cache = DynamicCache([3], CPU)
    x = torch.zeros(1, 2, 1, 8)
    with pytest.raises(ValueError, match="a tree's rows come after its prompts"):
        cache.attend(0, x, x, x, 1.0, None, None)
