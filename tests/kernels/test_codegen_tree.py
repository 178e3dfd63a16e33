# SPDX-License-Identifier: Apache-2.0
"""`tree_attention`'s compiled programs hold what makes them fast, and the checker that says so can say no."""

import os

import pytest

pytest.importorskip("triton", reason="needs Triton: pip install triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("an interpreter process cannot compile: unset TRITON_INTERPRET", True)

from tests.kernels import codegen, codegen_tree  # imports triton

if not all((codegen.BIN / tool).exists() for tool in ("cuobjdump", "nvdisasm", "ptxas")):
    pytest.skip("this Triton comes without NVIDIA's assembler and disassembler", True)

CASES = [
    pytest.param(case, target, id=f"{arch} {case.name}")
    for arch, target in codegen.TARGETS.items()
    for case in codegen_tree.shipped(target)
]
MUTANTS = codegen_tree.mutants(codegen.TARGETS["sm_90"])


@pytest.mark.parametrize(("case", "target"), CASES)
def test_shipped_program_holds(case, target):
    assert codegen_tree.breaches(case, target, codegen.facts(case, target)) == []


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name):
    case, words = MUTANTS[name]
    target = codegen.TARGETS["sm_90"]
    said = codegen_tree.breaches(case, target, codegen.facts(case, target))
    assert any(words in breach for breach in said), said
