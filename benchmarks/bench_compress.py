# SPDX-License-Identifier: Apache-2.0
"""compress against its peers: every shape, dtype and mode.

The figures are those of the interleaved rounds (`harness.py`), in `extra_info` and in the table at
the end. pytest-benchmark's own column times ours once more, alone, so that its --benchmark-compare
can follow it from commit to commit.
"""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from . import cells, harness
from .conftest import Recorder, Settings, Workloads
from .peers import MODES, OURS, contestants, ours
from .shapes import LOOP, SHAPES, Shape

# The pass over the whole table that this mode adds costs the same whatever the batch.
SGD_SHAPES = ("A16", "A")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    option = metafunc.config.option
    names = option.shapes.split(",") if option.shapes else ["A16"] if option.quick else list(SHAPES)
    if unknown := [name for name in names if name not in SHAPES]:
        raise pytest.UsageError(f"--shapes: expected some of {', '.join(SHAPES)}, got {unknown}")
    cells_of = [(SHAPES[name], mode) for name in names for mode in MODES if mode != "dense+sgd" or name in SGD_SHAPES]
    metafunc.parametrize(
        ("shape", "dtype", "mode"),
        [
            pytest.param(shape, dtype, mode, id=f"{dtype}-{shape.name}-{mode}")
            for dtype in DTYPES  # outermost: one dtype's tables at a time
            for shape, mode in [*cells_of, (LOOP, "dense")]
        ],
    )


def test_compress(
    shape: Shape,
    dtype: str,
    mode: str,
    settings: Settings,
    workloads: Workloads,
    record: Recorder,
    benchmark: BenchmarkFixture,
) -> None:
    work = workloads.get(shape, DTYPES[dtype])
    field = contestants(mode, loop=shape is LOOP)
    rows = cells.measure(work, mode, field, **settings.rounds)
    data = settings.source(shape.data).label
    record("compress", rows, {"data": data, "shape": shape.name, "dtype": dtype, "mode": mode})

    for row in rows:
        benchmark.extra_info[row["contestant"]] = row
    benchmark.group = f"{OURS} alone"
    if mode == "accumulate":
        for table in work.tables:
            table.grad = torch.zeros_like(table)
    rounds = iter(range(1000))

    def setup() -> tuple[tuple[int], dict[str, object]]:
        harness.flush_cache()
        return (next(rounds),), {}

    benchmark.pedantic(work.call(ours(mode), mode), setup=setup, rounds=2 if settings.quick else 3)
    for table in work.tables:
        table.grad = None
