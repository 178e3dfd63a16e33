# SPDX-License-Identifier: Apache-2.0
"""`tree_attention`'s compiled programs hold what makes them fast, and the checker that says so can say no."""

import os

import pytest

pytest.importorskip("triton", reason="needs Triton: pip install triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("an interpreter process cannot compile: unset TRITON_INTERPRET", True)

from benchmarks import occupancy  # imports triton
from tests.kernels import codegen, codegen_tree

if not all((codegen.BIN / tool).exists() for tool in ("cuobjdump", "nvdisasm", "ptxas")):
    pytest.skip("this Triton comes without NVIDIA's assembler and disassembler", True)

CASES = [  # each architecture, type and head dimension somewhere
    ("sm_80", 128, "bf16", 4),
    ("sm_86", 256, "fp16", 4),
    ("sm_89", 256, "fp32", 4),
    ("sm_90", 64, "bf16", 4),
    ("sm_100", 96, "bf16", 4),
    ("sm_120", 80, "fp32", 4),
    ("gfx942", 128, "bf16", 4),
    ("sm_86", 256, "bf16", 128),  # the most shared memory that a group took, on the smallest card
    ("sm_90", 128, "fp32", 71),
    ("gfx942", 256, "fp32", 1),
    ("sm_90", 256, "fp32", 128),  # what ptxas spills if it is told nothing, or too much
]
MUTANTS = codegen_tree.mutants()


@pytest.mark.parametrize(("arch", "d", "dtype", "group"), CASES)
def test_shipped_program_holds(arch, d, dtype, group):
    for case in codegen_tree.cases(arch, d, dtype, group=group):
        assert codegen_tree.breaches(case, arch, codegen.facts(case, occupancy.TARGETS[arch])) == [], case.name


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name):
    case, arch, words = MUTANTS[name]
    said = codegen_tree.breaches(case, arch, codegen.facts(case, occupancy.TARGETS[arch]))
    assert any(words in breach for breach in said), said


def test_products_without_matrix_units_are_caught():
    found = codegen.Facts(loads={16: 1}, copies=8)
    case = next(codegen_tree.cases("sm_90", 64))
    assert codegen_tree.breaches(case, "sm_90", found) == ["no products on matrix units"]
    assert codegen_tree.breaches(next(codegen_tree.cases("sm_90", 64, "fp32")), "sm_90", found) == []


def test_the_sweep_has_every_kind():
    """Types, head dimensions, the least and the largest group, and every height of tile."""
    for arch in occupancy.TARGETS:
        names = [case.name for case in codegen_tree.shipped(arch)]
        assert len(names) == len(set(names))
        for dtype in ("bf16", "fp16", "fp32"):
            for d in (64, 80, 96, 128, 256):
                for group in (1, 4, 128):
                    assert any(f"read_prompts {dtype} D {d}, group {group}, " in name for name in names)
                    assert f"read_paths {dtype} D {d}, group {group}" in names


@pytest.mark.parametrize(
    ("arch", "warps", "registers", "shared_bytes", "expected"),
    [
        ("sm_80", 4, 72, 0, 7),  # 28 warps: 65,536 registers, 72 * 32 a warp
        ("sm_90", 8, 128, 65_536, 2),
        ("sm_90", 8, 129, 65_536, 1),  # in granules of eight
        ("sm_86", 4, 128, 50_176, 2),
        ("sm_86", 4, 128, 50_177, 1),
        ("sm_86", 4, 32, 102_400, 0),
        ("sm_89", 2, 16, 0, 24),
        ("sm_120", 4, 16, 0, 12),  # 48 warps
        ("gfx942", 4, 128, 16_384, 4),
        ("gfx942", 4, 257, 0, 1),
        ("gfx942", 8, 257, 0, 0),
    ],
)
def test_blocks_on_a_multiprocessor(arch, warps, registers, shared_bytes, expected):
    assert occupancy.blocks(occupancy.MULTIPROCESSORS[arch], warps, registers, shared_bytes) == expected
