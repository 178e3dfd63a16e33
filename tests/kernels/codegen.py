# SPDX-License-Identifier: Apache-2.0
"""What the compiler makes of the shipped kernels, read from PTX, SASS and AMDGCN. No GPU needed.

Sixteen-byte accesses and no spills do not make a gather fast: ptxas can keep both and still issue
a load, use it, issue the next. So the checker also counts how many wide loads a thread has issued
before it first touches what any of them returned.

`python -m tests.kernels.sweep` compiles all of them.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import triton
from patchrec_kernels import _tl, compress
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TYPES = {
    "token_weight_ptr": "*fp32",
    "scale_ptr": "*fp32",
    "partial_ptr": "*fp32",
} | {
    name: "*i32" if name.endswith("_ptr") else "i32"
    for name in (
        "row_offsets_ptr", "rows_ptr", "index_ptr", "offsets_ptr", "unit_ptr", "unique_ptr",
        "num_embeddings", "num_rows", "x_rows", "out_rows",
    )
}  # fmt: skip
"""Arguments whose type is the same in every case."""
VECTORS = ("weight_ptr", "x_ptr", "out_ptr", "partial_ptr")
"""Arguments whose alignment decides how wide accesses are."""
ONE = "one"
"""The type of a stride that is 1, which a launch makes a constant."""
ITEMSIZES = {"bf16": 2, "fp16": 2, "fp32": 4}
BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Case:
    """One binary: a kernel, the types of its arguments, its constants and compiler options."""

    name: str  # of the kernel, the tensors' type, and what else tells the case apart
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, Any]
    store_bytes: int = 16  # the narrowest store allowed
    shared_bytes: int = 0  # the most shared memory allowed
    aligned: bool = True  # whether tensors start on 16 bytes


@dataclass
class Facts:
    """What was found. Loads and stores are counted by width in bytes, of one thread."""

    registers: int = 0
    spilled_bytes: int = 0
    shared_bytes: int = 0
    in_flight: int = 0
    loads: dict[int, int] = field(default_factory=dict)
    stores: dict[int, int] = field(default_factory=dict)
    source_loads: dict[int, int] = field(default_factory=dict)
    source_stores: dict[int, int] = field(default_factory=dict)
    copies: int = 0  # wide ones into shared memory, which the threads do not wait for
    products: int = 0  # of the matrix units


@dataclass(frozen=True)
class Budget:
    """What must hold. With 72 registers 28 warps live on an SM, with 112 KB of loads in flight at
    8 loads a thread; Little's law asks for 25 KB on an H200 (4.8 TB/s * 0.7 us / 132 SMs).
    CDNA 3 has 512 registers a lane, so with 128 of them 4 waves live on each SIMD."""

    registers: int
    in_flight: int = 6
    wide_loads: int = 8


def budget(target: GPUTarget) -> Budget:
    return Budget(registers=72 if target.backend == "cuda" else 128)


def shipped(target: GPUTarget, d: int = 2048, dtypes: Iterable[str] = ITEMSIZES) -> Iterator[Case]:
    """The binaries that `compress` launches on this target, with the tiles it gives them."""
    for dtype in dtypes:
        itemsize = ITEMSIZES[dtype]
        block, options = compress.tile(d, itemsize, target.backend, target.warp_size)
        types = {name: f"*{dtype}" for name in VECTORS if name != "partial_ptr"}
        constants = {
            "D": d, "STRIDE": d, "OUT_STRIDE": d, "BLOCK_D": block,
            "BLOCK_T": compress.BLOCK_T, "BLOCK_R": compress.BLOCK_T,
        }  # fmt: skip
        for index in ("i32", "i64"):
            typed = types | {"ids_ptr": f"*{index}"}
            yield Case(f"sum_rows {dtype} {index}", _tl.sum_rows, typed, constants, options)
            yield Case(f"copy_rows {dtype} {index}", _tl.copy_rows, typed, constants, options)
        # Of two-byte sums only the partial ones go through shared memory, to be stored as fp32.
        shared = block * 4 if itemsize == 2 else 0
        for name, scatter, accumulate in (("add", 1, 1), ("dense", 1, 0), ("sparse", 0, 0)):
            flags = {"SCATTER": bool(scatter), "ACCUMULATE": bool(accumulate), "GATHER": True}
            yield Case(
                f"sum_groups {dtype} {name}", _tl.sum_groups, types, constants | flags, options,
                shared_bytes=shared,
            )  # fmt: skip
        block, options = compress.tile(d, 4, target.backend, target.warp_size)
        flags = {"SCATTER": True, "ACCUMULATE": True, "GATHER": False, "BLOCK_D": block}
        yield Case(
            f"sum_groups {dtype} merge", _tl.sum_groups, types | {"x_ptr": "*fp32"},
            constants | flags, options, store_bytes=4 * itemsize,
        )  # fmt: skip


def facts(case: Case, target: GPUTarget) -> Facts:
    """Compile the case as a launch would and read what came out."""
    compiled = triton.compile(_source(case), target=target, options=case.options)
    found = Facts(shared_bytes=compiled.metadata.shared)
    if target.backend == "cuda":
        _read_ptx(compiled.asm["ptx"], found)
        _read_cubin(compiled.asm["cubin"], found)
    else:
        _read_amdgcn(compiled.asm["amdgcn"], found)
    return found


def _source(case: Case) -> ASTSource:
    signature: dict[str, str] = {}
    constants, attributes = {}, {}
    types = TYPES | case.types
    for position, parameter in enumerate(case.kernel.params):
        name = parameter.name
        one = not parameter.is_constexpr and types[name] == ONE
        signature[name] = "constexpr" if parameter.is_constexpr or one else types[name]
        if signature[name] == "constexpr":
            constants[(position,)] = 1 if one else case.constants[name]
        elif name.endswith(("_ptr", "_stride")) and not (
            parameter.do_not_specialize or parameter.do_not_specialize_on_alignment
        ):  # What a launch finds by looking at where a tensor starts and its rows.
            attributes[(position,)] = [["tt.divisibility", 16]] if case.aligned else []
    return ASTSource(case.kernel, signature, constants, attributes)


def breaches(case: Case, target: GPUTarget, found: Facts) -> list[str]:
    """What does not hold, in words; empty if all does."""
    said, allowed = [], budget(target)
    for level, loads, stores in (
        ("source", found.source_loads, found.source_stores),
        ("machine", found.loads, found.stores),
    ):
        if sum(n for width, n in loads.items() if width >= 16) < allowed.wide_loads:
            said.append(f"{level}: loads {loads}, expected {allowed.wide_loads} of 16 bytes")
        if min(loads, default=0) < 4:
            said.append(f"{level}: loads {loads}, expected none under 4 bytes")
        if min(stores, default=0) < case.store_bytes:
            said.append(f"{level}: stores {stores}, expected none under {case.store_bytes} bytes")
    if found.spilled_bytes:
        said.append(f"{found.spilled_bytes} bytes of local memory, expected none")
    if found.registers > allowed.registers:
        said.append(f"{found.registers} registers, expected at most {allowed.registers}")
    if found.shared_bytes > case.shared_bytes:
        said.append(f"{found.shared_bytes} bytes shared, expected at most {case.shared_bytes}")
    if found.in_flight < allowed.in_flight:
        said.append(f"{found.in_flight} wide loads in flight, expected {allowed.in_flight}")
    return said


def _count(widths: Iterable[int]) -> dict[int, int]:
    counted: dict[int, int] = {}
    for width in widths:
        counted[width] = counted.get(width, 0) + 1
    return dict(sorted(counted.items()))


def _read_ptx(text: str, found: Facts) -> None:
    access = r"\b{}\.global[\w.:]*?(?:\.v(\d))?\.[bfsu](\d+)\s"

    def widths(name: str) -> Iterator[int]:
        for lanes, bits in re.findall(access.format(name), text):
            yield int(lanes or 1) * int(bits) // 8

    found.source_loads, found.source_stores = _count(widths("ld")), _count(widths("st"))


def _read_cubin(cubin: bytes, found: Facts) -> None:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        sass = _tool("nvdisasm", "-c", file.name)
    resources = {name: int(n) for name, n in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    found.registers = resources["REG"]
    found.spilled_bytes = resources["STACK"] + resources["LOCAL"]
    read_sass(sass, found)


def _tool(name: str, *arguments: str) -> str:
    ran = subprocess.run([BIN / name, *arguments], check=True, capture_output=True, text=True)
    return ran.stdout


def read_sass(text: str, found: Facts) -> None:
    """Count accesses; in flight are the wide loads issued before a register of one is touched."""
    loads: list[int] = []
    stores: list[int] = []
    pending: list[set[int]] = []  # the registers each load in flight will write
    most = 0
    for line in text.splitlines():
        code = re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);", line)
        if not code:
            continue
        operation, operands = code.groups()
        # "R4.64" and the like also touch the next register, which the same load wrote.
        touched = {int(n) for n in re.findall(r"\bR(\d+)", operands)}
        width = _sass_width(operation)
        if operation.startswith("LDG."):
            loads.append(width)
        elif operation.startswith("STG."):
            stores.append(width)
        found.copies += operation.startswith("LDGSTS.") and width >= 16
        found.products += operation.startswith(("HMMA", "HGMMA", "UTCHMMA"))
        if any(touched & written for written in pending):
            pending = []
        if operation.startswith("LDG.") and width >= 16:
            first = int(re.findall(r"\bR(\d+)", operands)[0])
            pending.append(set(range(first, first + width // 4)))
            most = max(most, len(pending))
        if operation.startswith(("LDL", "STL")):
            found.spilled_bytes = max(found.spilled_bytes, 4)
    found.loads, found.stores, found.in_flight = _count(loads), _count(stores), most


def _sass_width(operation: str) -> int:
    parts = operation.split(".")
    for name, width in (("256", 32), ("128", 16), ("64", 8), ("U16", 2), ("S16", 2)):
        if name in parts:
            return width
    return 1 if {"U8", "S8"} & set(parts) else 4


_AMD_WIDTHS = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "ushort": 2, "sshort": 2,
               "short": 2, "ubyte": 1, "sbyte": 1, "byte": 1}  # fmt: skip


def _read_amdgcn(text: str, found: Facts) -> None:
    for name in ("vgpr_count", "vgpr_spill_count", "private_segment_fixed_size"):
        value = int(re.findall(rf"\.{name}:\s*(\d+)", text)[0])
        if name == "vgpr_count":
            found.registers = value
        else:
            found.spilled_bytes += value
    read_amdgcn(text, found)
    found.source_loads, found.source_stores = found.loads, found.stores


def read_amdgcn(text: str, found: Facts) -> None:
    """As read_sass; memory operations end in order, and vmcnt(n) waits until n are left."""
    loads: list[int] = []
    stores: list[int] = []
    pending: list[int] = []  # the width of each load in flight, 0 for a store
    most = 0
    for line in text.splitlines():
        access = re.match(r"\s+(?:global|buffer|flat)_(load|store)_(\w+)", line)
        wait = re.match(r"\s+s_waitcnt.*?vmcnt\((\d+)\)", line)
        found.products += "v_mfma_" in line
        if wait:
            pending = pending[max(0, len(pending) - int(wait[1])) :]
        if not access:
            continue
        kind, width = access[1], _AMD_WIDTHS.get(re.sub(r"_d16.*", "", access[2]), 4)
        (loads if kind == "load" else stores).append(width)
        pending.append(width if kind == "load" else 0)
        most = max(most, sum(width >= 16 for width in pending))
    found.loads, found.stores, found.in_flight = _count(loads), _count(stores), most


def mutants(target: GPUTarget) -> dict[str, tuple[Case, str]]:
    """Changes that spoil the forward kernel, and words of the breach that each must be told by."""
    good = next(shipped(target))
    block = good.constants["BLOCK_D"]

    def changed(**constants: int) -> Case:
        return replace(good, constants=good.constants | constants)

    roomy = {"maxnreg": 255} if target.backend == "cuda" else {}
    cases = {
        "tensors not aligned": (replace(good, aligned=False), "expected none under 4 bytes"),
        "a few columns": (changed(BLOCK_D=block // 16), "expected 8 of 16 bytes"),
        "a few rows": (changed(BLOCK_T=2), "wide loads in flight, expected 6"),
        "many rows": (
            replace(changed(BLOCK_T=32), options=good.options | roomy),
            "registers, expected at most",
        ),
    }
    if target.backend == "cuda":
        starved = replace(good, options=good.options | {"maxnreg": 32})
        cases["few registers"] = (starved, "bytes of local memory, expected none")
        default = replace(good, options=good.options | {"maxnreg": None})
        cases["ptxas's own target"] = (default, "wide loads in flight, expected 6")
    return cases
