# SPDX-License-Identifier: Apache-2.0
"""Inputs of `tree_attention`, and what it must give, in float64, one row at a time.

Tolerance of one element. u = 2^-24 is fp32's unit roundoff. A logit is a sum of D products, scaled: it errs by
(D + 4) u scale sum |q k|; the cap adds 10 u softcap (five operations on numbers up to 2), and makes no error larger,
for the slope of tanh is at most 1. Its distance from the largest logit, up to twice the largest |logit|, is rounded.
So all weights, exp of that, err relatively by e = 2 (those) + 4 u, and so do the shares of merged parts. The mean of
values has e twice, once from the divisor, and the roundings of two sums of m terms, and of at most 32 tiles and parts:
in all (2 e + (2 m + 96) u) sum p |v|. Weights that are rounded to 16 bits before they meet the values add `weight` of
that, and 2^-25 sum |v| where they are fp16, whose smallest steps are 2^-24. The result is rounded once, by `result`.
"""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

U = 2.0**-24


class Trees(NamedTuple):
    """The tensors of a call."""

    query: Tensor
    key: Tensor
    value: Tensor
    cu_seqlens: Tensor
    tree_key: Tensor
    tree_value: Tensor
    path: Tensor
    cu_rows: Tensor


def csr(counts):
    return torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32)


def grow(counts, size, columns, padding, generator):
    """(n + padding, columns): paths of any length through `size` rows; row r is the tree's r + 1, and 0 is nobody's."""
    path = torch.full((sum(counts) + padding, columns), -1)
    for row in range(sum(counts)):
        depth = int(torch.randint(1, columns + 1, (), generator=generator))
        path[row, : depth - 1] = torch.randint(1, size, (depth - 1,), generator=generator)
        path[row, depth - 1] = row + 1
    return path


def make(
    counts,
    lengths,
    *,
    key_heads=2,
    group=3,
    d=16,
    columns=36,
    dtype=torch.float32,
    value_dtype=None,
    seed=0,
    device="cpu",
):
    """Users of so many rows and such prompts. No two tensors have the same strides; what nobody may read is NaN."""
    generator = torch.Generator().manual_seed(seed)
    padding, slack, size = 2, 5, sum(counts) + 9

    def rows(n, heads, spare, to, apart=0):
        x = torch.randn(heads, n + spare + apart, d, generator=generator)
        x[:, n:] = torch.nan
        return x.to(device, to)[:, : n + spare].transpose(0, 1)  # of these strides on any device

    path = grow(counts, size, columns, padding, generator)
    unused = torch.ones(size, dtype=torch.bool)
    unused[path[path >= 0]] = False
    unused = unused.to(device)
    value_dtype = value_dtype or dtype
    tree_key, tree_value = rows(size, key_heads, 0, dtype), rows(size, key_heads, 0, value_dtype, apart=1)
    tree_key[unused], tree_value[unused] = torch.nan, torch.nan
    return Trees(
        rows(sum(counts), key_heads * group, padding, dtype),
        rows(sum(lengths), key_heads, slack, dtype),
        rows(sum(lengths), key_heads, slack, value_dtype, apart=1),
        csr(lengths).to(device),
        tree_key,
        tree_value,
        path.to(device),
        csr(counts).to(device),
    )


def exact(trees, *, scale, window=None, softcap=None, weight=0.0, result=0.0):
    """(n, Hq, D) float64: the result, and how far from it a kernel may be; zeros for rows that are no user's."""
    trees = Trees(*(x.cpu() for x in trees))
    out = torch.zeros(trees.query.shape, dtype=torch.float64)
    bound = torch.zeros_like(out)
    for user, (first, last) in enumerate(itertools.pairwise(trees.cu_rows.tolist())):
        prompt = range(*trees.cu_seqlens[user : user + 2].tolist())
        for row in range(first, last):
            path = [entry for entry in trees.path[row].tolist() if entry >= 0]
            seen = slice(max(0, len(prompt) + len(path) - window) if window else 0, None)
            key, value = (
                torch.cat([x[prompt.start : prompt.stop], tree[path]])[seen].double()  # (m, Hk, D)
                for x, tree in ((trees.key, trees.tree_key), (trees.value, trees.tree_value))
            )
            out[row], bound[row] = _attend(trees.query[row].double(), key, value, scale, softcap, weight)
    bound += result * (out.abs() + bound)
    if trees.value.dtype is torch.float16:
        bound += 2.0**-25
    return out, bound


def _attend(query, key, value, scale, softcap, weight):
    """One row, (Hq, D), over its keys and values, (m, Hk, D)."""
    group = query.shape[0] // key.shape[1]
    key, value = (x.repeat_interleave(group, 1) for x in (key, value))  # (m, Hq, D)
    logits = (key * query).sum(-1) * scale  # (m, Hq)
    error = (query.shape[1] + 4) * U * scale * (key * query).abs().sum(-1).amax(0)  # (Hq,)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
        error += 10 * U * softcap
    error = 2 * (error + 2 * U * logits.abs().amax(0)) + 4 * U
    p = logits.softmax(0).unsqueeze(-1)  # (m, Hq, 1)
    share = (2 * error + (2 * len(key) + 96) * U + weight).unsqueeze(-1)  # (Hq, 1)
    bound = share * (p * value.abs()).sum(0)
    if weight == 2.0**-11:
        bound += 2.0**-25 * value.abs().sum(0)
    return (p * value).sum(0), bound


def assert_within(got, expected):
    """NaN is not."""
    out, bound = expected
    assert got.shape == out.shape
    worst = ((got.cpu().double() - out).abs() - bound).max()
    assert worst <= 0, f"{worst} beyond the tolerance"
