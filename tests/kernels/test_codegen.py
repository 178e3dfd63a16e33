# SPDX-License-Identifier: Apache-2.0
"""The compiled kernels hold what makes them fast, and the checker that says so can say no."""

import os

import pytest

pytest.importorskip("triton", reason="needs Triton: pip install triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("an interpreter process cannot compile: unset TRITON_INTERPRET", True)

from benchmarks import occupancy  # imports triton
from tests.kernels import codegen

if not all((codegen.BIN / tool).exists() for tool in ("cuobjdump", "nvdisasm", "ptxas")):
    pytest.skip("this Triton comes without NVIDIA's assembler and disassembler", True)

DTYPES = {"sm_86": "fp16", "sm_89": "fp32", "sm_120": "fp32"}
CASES = [  # one type of an architecture; `python -m tests.kernels.sweep` has them all
    pytest.param(case, arch, id=f"{arch} {case.name}")
    for arch, target in occupancy.TARGETS.items()
    for case in codegen.shipped(target, dtypes=[DTYPES.get(arch, "bf16")])
    if not case.name.endswith(("i32", "dense", "sparse"))
]
MUTANTS = [
    pytest.param(case, words, arch, id=f"{arch} {name}")
    for arch in ("sm_90", "gfx942")
    for name, (case, words) in codegen.mutants(occupancy.TARGETS[arch]).items()
]


@pytest.mark.parametrize(("case", "arch"), CASES)
def test_shipped_kernel_holds(case, arch):
    target = occupancy.TARGETS[arch]
    assert codegen.breaches(case, target, codegen.facts(case, target)) == []


@pytest.mark.parametrize(("case", "words", "arch"), MUTANTS)
def test_mutant_is_caught(case, words, arch):
    target = occupancy.TARGETS[arch]
    said = codegen.breaches(case, target, codegen.facts(case, target))
    assert any(words in breach for breach in said), said


@pytest.mark.parametrize("d", [896, 1536, 3584, 4096, 5120])
def test_widths_of_real_models_keep_wide_accesses(d):
    """Also where the last tile is not full, and its columns are masked."""
    target = occupancy.TARGETS["sm_90"]
    for case in codegen.shipped(target, d, ["bf16"]):
        if case.name.startswith(("sum_rows bf16 i64", "sum_groups bf16 add")):
            assert codegen.breaches(case, target, codegen.facts(case, target)) == []


def test_a_row_of_100_elements_still_loads_eight_bytes():
    """200 bytes keep rows 8-byte aligned, not 16: what the strides' being constants is for."""
    target = occupancy.TARGETS["sm_90"]
    found = codegen.facts(next(codegen.shipped(target, 100)), target)
    assert min(found.stores) == 8
    assert found.loads[8] >= 8
    assert found.spilled_bytes == 0


def test_one_binary_serves_any_batch():
    """What changes from batch to batch (sizes, and where plan arrays start) recompiles nothing."""
    for kernel in (codegen._tl.sum_rows, codegen._tl.copy_rows, codegen._tl.sum_groups):
        for parameter in kernel.params:
            if parameter.is_constexpr or parameter.name in codegen.VECTORS:
                continue
            if parameter.name.endswith("_ptr"):
                assert parameter.do_not_specialize_on_alignment, parameter.name
            else:
                assert parameter.do_not_specialize, parameter.name


SASS = """
        /*0100*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0110*/              @!P0 LDG.E.128.CONSTANT R8, [R2.64+0x10] ;
        /*0120*/                   LDG.E.U16 R20, [R2.64+0x20] ;
        /*0130*/                   FFMA R12, R5, R13, R14 ;
        /*0140*/                   LDG.E.128 R4, [R2.64+0x30] ;
        /*0150*/                   STG.E.64 [R2.64], R12 ;
        /*0160*/                   STL [R1+0x8], R30 ;
"""


def test_sass_is_read():
    found = codegen.Facts()
    codegen.read_sass(SASS, found)
    assert (found.loads, found.stores) == ({2: 1, 16: 3}, {8: 1})
    assert found.in_flight == 2
    assert found.spilled_bytes > 0


AMDGCN = """
	global_load_dwordx4 v[0:3], v20, s[2:3]
	global_load_dwordx4 v[4:7], v20, s[2:3] offset:16
	s_waitcnt vmcnt(1)
	global_load_dwordx4 v[8:11], v20, s[2:3] offset:32
	buffer_load_ushort v12, v20, s[4:7], 0 offen
	global_store_dwordx2 v[12:13], v[14:15], off
	s_waitcnt vmcnt(0) lgkmcnt(0)
	global_load_dwordx4 v[0:3], v20, s[2:3]
	global_store_short_d16_hi v12, v1, s[2:3]
"""


def test_amdgcn_is_read():
    found = codegen.Facts()
    codegen.read_amdgcn(AMDGCN, found)
    assert (found.loads, found.stores) == ({2: 1, 16: 4}, {2: 1, 8: 1})
    assert found.in_flight == 2
