# SPDX-License-Identifier: Apache-2.0
"""What the compiler makes of `tree_attention`'s programs. No GPU needed.

`python -m tests.kernels.sweep` compiles them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from patchrec_kernels import _tree, tree_attention

from benchmarks.occupancy import MULTIPROCESSORS, TARGETS, blocks
from tests.kernels.codegen import ITEMSIZES, Case, Facts

TYPES = {
    "cu_seqlens_ptr": "*i32", "cu_rows_ptr": "*i32", "path_ptr": "*i64", "mean_ptr": "*fp32", "lse_ptr": "*fp32",
} | dict.fromkeys(
    (
        "query_row_stride", "query_head_stride", "key_row_stride", "key_head_stride", "value_row_stride",
        "value_head_stride", "path_stride", "rows", "prompt_rows", "tree_rows", "path_columns", "tiles", "users",
        "splits",
    ),
    "i32",
)  # fmt: skip


def cases(
    arch: str,
    d: int,
    dtype: str = "bf16",
    rows: int = 20,
    group: int = 4,
    window: int | None = None,
    softcap: float | None = None,
) -> Iterator[Case]:
    """The two programs with the tiles that they are launched with."""
    target, shared = TARGETS[arch], MULTIPROCESSORS[arch].block_bytes
    tile = tree_attention.tile(rows * group, d, ITEMSIZES[dtype], target, shared)
    types = TYPES | dict.fromkeys(("query_ptr", "key_ptr", "value_ptr", "out_ptr"), f"*{dtype}")
    constants = {
        "D": d, "GROUP": group, "SCALE": d**-0.5, "WINDOW": window, "SOFTCAP": softcap, "OPERAND": None,
        "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_G": tree_attention.BLOCK_G, "BLOCK_A": 16,
        "D_TILE": tile.d_tile,
    }  # fmt: skip
    name = f"{dtype} D {d}, group {group}{', windowed and capped' if window and softcap else ''}"
    yield Case(f"read_prompts {name}, {tile.block_m} queries", _tree.read_prompts, types, constants, tile.prompts)
    yield Case(f"read_paths {name}", _tree.read_paths, types, constants, tile.paths)


def shipped(arch: str) -> Iterator[Case]:
    """Every binary that the sweep compiles: head dimensions, types, and groups of 1 to 128 query heads to a key head.

    The rows, 1 and 20, make every height of tile that there is.
    """
    seen = set()
    for dtype in ITEMSIZES:
        for d in (64, 80, 96, 128, 256):
            tables = [cases(arch, d, dtype, rows, group) for rows, group in ((1, 1), (20, 1), (20, 4), (20, 128))]
            if dtype == "bf16" and d >= 128:  # as Gemma 2 has it
                tables.append(cases(arch, d, dtype, 20, 2, window=4096, softcap=50.0))
            for case in (case for table in tables for case in table):
                if case.name not in seen:
                    seen.add(case.name)
                    yield case


def breaches(case: Case, arch: str, found: Facts) -> list[str]:
    """What does not hold, in words; empty if all does."""
    said, available = [], MULTIPROCESSORS[arch]
    is_16_bit = case.types["query_ptr"] != "*fp32"
    reads_prompts = case.kernel is _tree.read_prompts
    if found.spilled_bytes:
        said.append(f"{found.spilled_bytes} bytes of local memory, expected none")
    if is_16_bit and found.products == 0:
        said.append("no products on matrix units")
    if found.shared_bytes > available.block_bytes:
        said.append(f"{found.shared_bytes} bytes shared, expected at most {available.block_bytes}")
    living = blocks(available, case.options["num_warps"], found.registers, found.shared_bytes)
    planned = tree_attention.PROGRAMS if reads_prompts else 1
    if living < planned:
        said.append(f"{living} blocks on a multiprocessor, expected {planned}")
    if TARGETS[arch].backend == "cuda" and reads_prompts and is_16_bit and found.copies < 8:
        said.append(f"{found.copies} copies of 16 bytes into shared memory, expected 8")
    if max(found.loads, default=0) < 16:
        said.append(f"loads {found.loads}, expected some of 16 bytes")
    return said


def mutants() -> dict[str, tuple[Case, str, str]]:
    """Changes that spoil the first program, where, and words of the breach that each must be told by."""
    good = next(cases("sm_90", 128))
    wide = replace(good, constants=good.constants | {"BLOCK_N": 64}, options=good.options | {"num_stages": 4})
    return {
        "tensors not aligned": (replace(good, aligned=False), "sm_90", "copies of 16 bytes"),
        "one stage": (replace(good, options=good.options | {"num_stages": 1}), "sm_90", "copies of 16 bytes"),
        "many keys": (wide, "sm_90", "1 blocks on a multiprocessor, expected 2"),
        "many keys, a small card": (wide, "sm_86", "bytes shared, expected at most 101376"),
        "few registers": (replace(good, options=good.options | {"maxnreg": 96}), "sm_90", "bytes of local memory"),
    }
