# SPDX-License-Identifier: Apache-2.0
"""What the compiler makes of `tree_attention`'s programs. No GPU needed.

python -m tests.kernels.codegen_tree          # the table; the exit code says whether all hold
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

import triton
from patchrec_kernels import _tree, tree_attention
from triton.backends.compiler import GPUTarget

from tests.kernels.codegen import TARGETS, Case, Facts, facts

SHARED_BYTES = {"cuda": 99 * 1024, "hip": 64 * 1024}
"""What a program can have on every GPU of the backend (sm_86, sm_89 and sm_120 have the least)."""
TYPES = {
    "cu_seqlens_ptr": "*i32", "cu_rows_ptr": "*i32", "path_ptr": "*i64", "mean_ptr": "*fp32", "lse_ptr": "*fp32",
} | dict.fromkeys(
    (
        "query_row_stride", "query_head_stride", "key_row_stride", "key_head_stride", "value_row_stride",
        "value_head_stride", "path_stride", "rows", "prompt_rows", "tree_rows", "path_columns", "tiles", "users",
    ),
    "i32",
)  # fmt: skip


def cases(target: GPUTarget, d: int, dtype: str = "bf16", rows: int = 20, group: int = 4) -> Iterator[Case]:
    """The two programs with the tiles that they are launched with."""
    itemsize = 4 if dtype == "fp32" else 2
    tile = tree_attention.tile(rows * group, group, d, itemsize, target.backend)
    types = TYPES | dict.fromkeys(("query_ptr", "key_ptr", "value_ptr", "out_ptr"), f"*{dtype}")
    constants = {
        "D": d, "GROUP": group, "SCALE": d**-0.5, "WINDOW": None, "SOFTCAP": None, "OPERAND": None, "SPLITS": 4,
        "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_G": 16, "BLOCK_A": 16, "D_TILE": tile.d_tile,
    }  # fmt: skip
    name = f"{dtype} D {d} queries {rows * group}"
    yield Case(f"read_prompts {name}", _tree.read_prompts, types, constants, tile.prompts)
    yield Case(f"read_paths {name}", _tree.read_paths, types, constants, tile.paths)


def shipped(target: GPUTarget) -> Iterator[Case]:
    """Ten and twenty beams of Llama-3.2's heads, four queries to a key."""
    yield from cases(target, 64)
    yield next(cases(target, 128, rows=10))


def breaches(case: Case, target: GPUTarget, found: Facts) -> list[str]:
    """What does not hold, in words; empty if all does."""
    said = []
    if found.spilled_bytes:
        said.append(f"{found.spilled_bytes} bytes of local memory, expected none")
    if found.products == 0:
        said.append("no products on matrix units")
    if found.shared_bytes > SHARED_BYTES[target.backend]:
        said.append(f"{found.shared_bytes} bytes shared, expected at most {SHARED_BYTES[target.backend]}")
    if target.backend == "cuda" and case.kernel is _tree.read_prompts and found.copies < 8:
        said.append(f"{found.copies} copies of 16 bytes into shared memory, expected 8")
    if max(found.loads) < 16:
        said.append(f"loads {found.loads}, expected some of 16 bytes")
    return said


def mutants(target: GPUTarget) -> dict[str, tuple[Case, str]]:
    """Changes that spoil the first program, and words of the breach that each must be told by."""
    good = next(cases(target, 128))
    wide = good.constants | {"BLOCK_N": 64}
    return {
        "tensors not aligned": (replace(good, aligned=False), "copies of 16 bytes"),
        "one stage": (replace(good, options=good.options | {"num_stages": 1}), "copies of 16 bytes"),
        "fp32": (next(cases(target, 64, "fp32")), "no products on matrix units"),
        "many keys": (replace(good, constants=wide, options=good.options | {"num_stages": 4}), "bytes shared"),
        "few registers": (replace(good, options=good.options | {"maxnreg": 96}), "bytes of local memory"),
    }


def main() -> int:
    failed = False
    print(f"triton {triton.__version__}")
    for arch, target in TARGETS.items():
        tables = [cases(target, d, rows=rows) for d in (64, 128) for rows in (10, 20)]
        for case in (case for table in tables for case in table):
            found = facts(case, target)
            wrong = breaches(case, target, found)
            failed |= bool(wrong)
            print(
                f"{arch:7s} {case.name:36s} warps {case.options['num_warps']}  registers {found.registers:3d}  "
                f"shared {found.shared_bytes:6d}  copies {found.copies:2d}  products {found.products:3d}  "
                f"loads {found.loads}  stores {found.stores}  {'; '.join(wrong) or 'ok'}",
                flush=True,
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
