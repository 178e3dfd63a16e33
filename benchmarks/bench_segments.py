# SPDX-License-Identifier: Apache-2.0
"""`segment_attention` on the CPU at the shapes that training makes, forward and backward.

A template, one user's history under it, and a leaf of 45 to 60 rows a target, each `step` rows of the history after the
one before. Peers compute the same rows: torch's flash kernel a segment at a time on gathered keys (all that it sees,
copied), and one sdpa call with a dense mask, where that fits.
"""

import itertools
from typing import NamedTuple

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.nn import functional as F

from patchrec_fast.hf import attention as _registers  # noqa: F401  the operator varlen_attention
from patchrec_fast.ops.attention import Segments, segment_attention
from patchrec_fast.ops.attention.mask import sees

from . import harness, machine
from .conftest import Recorder, Settings
from .gate import WrongAnswer
from .peers import OURS
from .results import Row

GATHERED, DENSE = "varlen, gathered keys", "sdpa, dense mask"
TEMPLATE, LEAF = 45, (45, 60)
DENSE_ROWS = 5000  # the mask and the logits grow with their square
TOLERANCE = 1e-4  # of float32 sums over thousands of rows, relative to the largest number


class Shape(NamedTuple):
    """One user: rows of the history, targets, rows of the history between targets, heads and their width."""

    trunk: int
    leaves: int
    step: int
    heads: int
    width: int

    def __str__(self) -> str:
        return f"{self.trunk} rows, {self.leaves} leaves every {self.step}, {self.heads} x {self.width}"


SHAPES = [
    Shape(300, 16, 15, 2, 64),
    Shape(300, 16, 2, 12, 64),
    Shape(1200, 64, 15, 2, 64),
    Shape(1200, 64, 2, 4, 32),
    Shape(2500, 16, 15, 12, 64),
    Shape(2500, 100, 20, 2, 64),
    Shape(2500, 1000, 2, 2, 64),
]


class Work(NamedTuple):
    """A forest, its tensors, and what the peers are told of it."""

    segments: Segments
    qkv: list[Tensor]
    grad: Tensor
    keys: Tensor  # (K,) the rows that each segment sees, one segment after another
    cu_seqlens_k: Tensor  # (S + 1,)
    mask: Tensor | None  # (R, R)


def make(shape: Shape, seed: int = 0) -> Work:
    generator = torch.Generator().manual_seed(seed)
    leaves = torch.randint(LEAF[0], LEAF[1] + 1, (shape.leaves,), generator=generator).tolist()
    ends = [0, *itertools.accumulate([TEMPLATE, shape.trunk, *leaves])]
    visible = [max(1, shape.trunk - shape.step * (shape.leaves - 1 - leaf)) for leaf in range(shape.leaves)]
    parent = [-1, 0, *[1] * shape.leaves]
    segments = Segments.of(torch.tensor(ends), torch.tensor(parent), torch.tensor([0, TEMPLATE, *visible]))
    _, ranges = segments.ranges()
    seen = [torch.cat([torch.arange(a, b) for a, b in each]) for each in ranges.tolist()]
    qkv = [torch.randn(ends[-1], shape.heads, shape.width, generator=generator) for _ in range(4)]
    row = torch.arange(ends[-1])
    mask = sees(segments)(row.unsqueeze(1), row) if ends[-1] <= DENSE_ROWS else None
    bounds = torch.tensor([0, *itertools.accumulate(map(len, seen))], dtype=torch.int32)
    return Work(segments, [x.requires_grad_() for x in qkv[:3]], qkv[3], torch.cat(seen), bounds, mask)


def ours(work: Work, qkv: list[Tensor]) -> Tensor:
    return segment_attention(*qkv, work.segments)


def gathered(work: Work, qkv: list[Tensor]) -> Tensor:
    query, key, value = qkv
    key, value = (x.index_select(0, work.keys) for x in (key, value))
    bounds = work.segments.cu_seqlens, work.cu_seqlens_k
    made: Tensor = torch.ops.patchrec_fast.varlen_attention(query, key, value, *bounds, query.shape[2] ** -0.5, None)[0]
    return made


def dense(work: Work, qkv: list[Tensor]) -> Tensor:
    query, key, value = (x.transpose(0, 1).unsqueeze(0) for x in qkv)
    return F.scaled_dot_product_attention(query, key, value, work.mask)[0].transpose(0, 1)


CONTESTANTS = {OURS: ours, GATHERED: gathered, DENSE: dense}


def check(work: Work) -> None:
    """No time is taken of a wrong answer: outputs and gradients against the reference in float64."""
    exact = [x.detach().double().requires_grad_() for x in work.qkv]
    out = segment_attention(*exact, work.segments, impl="reference")
    wanted = out, *torch.autograd.grad(out, exact, work.grad.double())
    for name, attend in CONTESTANTS.items():
        made = attend(work, work.qkv)
        found = made, *torch.autograd.grad(made, work.qkv, work.grad)
        for part, got, want in zip(("output", "query", "key", "value"), found, wanted, strict=True):
            error, allowed = float((got - want).detach().abs().max()), TOLERANCE * float(want.detach().abs().max())
            if not error <= allowed:
                raise WrongAnswer(f"{name}, {part}: off by {error:.2g}, allowed {allowed:.2g}")


@pytest.mark.parametrize("mode", ["forward", "forward+backward"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_segments(shape: Shape, mode: str, settings: Settings, record: Recorder, benchmark: BenchmarkFixture) -> None:
    if settings.quick and shape is not SHAPES[0]:
        pytest.skip("--quick: the smallest shape only")
    check(make(shape._replace(trunk=100, leaves=5)))
    work = make(shape)
    calls: dict[str, harness.Call] = {}
    for name, attend in CONTESTANTS.items():
        if attend is dense and work.mask is None:
            continue

        def call(round_: int, attend=attend) -> object:  # type: ignore[no-untyped-def]
            if mode == "forward":
                with torch.no_grad():
                    return attend(work, work.qkv)
            return torch.autograd.grad(attend(work, work.qkv), work.qkv, work.grad)

        calls[name] = call
    peaks = {name: machine.peak_megabytes(lambda call=call: call(0)) for name, call in calls.items()}  # type: ignore[misc]
    rounds = settings.rounds or {"min_rounds": 3, "max_rounds": 15, "budget": 20.0}
    timings = harness.measure(calls, **rounds)
    ratios = harness.ratios(timings, [name for name in calls if name != OURS])
    rows: list[Row] = [
        {
            "contestant": timing.name,
            "median_ms": round(timing.milliseconds(), 2),
            "p20_ms": round(timing.milliseconds(0.2), 2),
            "p80_ms": round(timing.milliseconds(0.8), 2),
            "rounds": len(timing.seconds),
            "contended": timing.contended,
            "ratio": round(ratios[timing.name], 2),
            "peak_mb": round(peaks[timing.name], 1),
        }
        for timing in timings
    ]
    rows_packed = len(work.segments.position_ids)
    record("segments", rows, {"data": "random", "shape": str(shape), "rows": rows_packed, "mode": mode})
    for row in rows:
        benchmark.extra_info[str(row["contestant"])] = row
    benchmark.group = f"{OURS} alone"
    benchmark.pedantic(calls[OURS], args=(0,), rounds=1)
