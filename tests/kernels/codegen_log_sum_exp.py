# SPDX-License-Identifier: Apache-2.0
"""What the compiler makes of `log_sum_exp`'s program. No GPU needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from patchrec_kernels import log_sum_exp

from benchmarks.occupancy import TARGETS
from tests.kernels.codegen import ITEMSIZES, ONE, Case, Facts

TYPES = {"out_ptr": "*fp32", **dict.fromkeys(("rows", "columns", "share", "row_stride", "column_stride"), "i32")}


THREADS = {arch: target.warp_size for arch, target in TARGETS.items()}  # of a warp


def shipped() -> Iterator[Case]:
    """Logits with a row's elements side by side, as in decoding, and with a column's, as in the loss."""
    for dtype in ITEMSIZES:
        for name, tile, adjacent in (
            ("across", log_sum_exp.ACROSS, "column_stride"),
            ("down", log_sum_exp.DOWN, "row_stride"),
        ):
            for softcap in (None, 30.0):
                types = TYPES | {"logits_ptr": f"*{dtype}", adjacent: ONE}
                constants = {"SCALE": 1.0, "SOFTCAP": softcap, "BLOCK_R": tile.rows, "BLOCK_C": tile.columns}
                about = f"log_sums {dtype} {name}{'' if softcap is None else ', capped'}"
                yield Case(about, log_sum_exp.log_sums, types, constants, tile.options)


def breaches(case: Case, arch: str, found: Facts) -> list[str]:
    """What does not hold, in words; empty if all does."""
    said = []
    if found.spilled_bytes:
        said.append(f"{found.spilled_bytes} bytes of local memory, expected none")
    elements = case.constants["BLOCK_R"] * case.constants["BLOCK_C"]
    expected = elements * ITEMSIZES[case.types["logits_ptr"][1:]] // (16 * THREADS[arch] * case.options["num_warps"])
    if (wide := sum(n for width, n in found.loads.items() if width >= 16)) < expected:
        said.append(f"{wide} loads of 16 bytes, expected {expected}")
    return said


def mutants() -> dict[str, tuple[Case, str]]:
    """Changes that spoil the program, and words of the breach that each must be told by."""
    good = next(shipped())
    return {
        "rows not aligned": (replace(good, aligned=False), "0 loads of 16 bytes"),
        "no element adjacent": (replace(good, types=good.types | {"column_stride": "i32"}), "0 loads of 16 bytes"),
        "a long tile": (
            replace(good, constants=good.constants | {"BLOCK_C": 2**16}, options={"num_warps": 4}),
            "bytes of local memory",
        ),
    }
