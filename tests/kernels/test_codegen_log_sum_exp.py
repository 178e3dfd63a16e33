# SPDX-License-Identifier: Apache-2.0
"""The compiled `log_sum_exp` reads 16 bytes at a time and keeps its registers, and the checker can say no."""

import os

import pytest

pytest.importorskip("triton", reason="needs Triton: pip install triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("an interpreter process cannot compile: unset TRITON_INTERPRET", True)

from benchmarks.occupancy import TARGETS
from tests.kernels import codegen, codegen_log_sum_exp

if not all((codegen.BIN / tool).exists() for tool in ("cuobjdump", "nvdisasm", "ptxas")):
    pytest.skip("this Triton comes without NVIDIA's assembler and disassembler", True)

CASES = [
    pytest.param(case, arch, id=f"{arch} {case.name}")
    for arch, dtype in (("sm_80", "bf16"), ("sm_90", "bf16"), ("sm_120", "fp32"), ("gfx942", "fp16"))
    for case in codegen_log_sum_exp.shipped()
    if case.name.split()[1] == dtype
]


@pytest.mark.parametrize(("case", "arch"), CASES)
def test_shipped_kernel_holds(case, arch):
    assert codegen_log_sum_exp.breaches(case, arch, codegen.facts(case, TARGETS[arch])) == []


@pytest.mark.parametrize("mutant", codegen_log_sum_exp.mutants())
def test_mutant_is_caught(mutant):
    case, words = codegen_log_sum_exp.mutants()[mutant]
    said = codegen_log_sum_exp.breaches(case, "sm_90", codegen.facts(case, TARGETS["sm_90"]))
    assert any(words in breach for breach in said), said
