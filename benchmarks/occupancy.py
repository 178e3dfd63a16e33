# SPDX-License-Identifier: Apache-2.0
"""The GPUs that the kernels are compiled for, and how many blocks of a binary live on a multiprocessor at once."""

from dataclasses import dataclass

from triton.backends.compiler import GPUTarget

TARGETS = {f"sm_{n}": GPUTarget("cuda", n, 32) for n in (80, 86, 89, 90, 100, 120)} | {
    "gfx942": GPUTarget("hip", "gfx942", 64)
}


@dataclass(frozen=True)
class Multiprocessor:
    """What one has. NVIDIA: CUDA C++ Programming Guide, technical specifications per compute capability. AMD: the ISA
    guide of CDNA 3; a lane of each of its four SIMDs has 512 registers, and its workgroups share 16 barriers."""

    block_bytes: int  # shared memory that one block can have
    shared_bytes: int
    warps: int
    blocks: int
    lanes: int = 32
    registers: int = 65_536
    reserved_bytes: int = 1024  # of shared memory, for each block


_KB = 1024
MULTIPROCESSORS = {
    "sm_80": Multiprocessor(163 * _KB, 164 * _KB, warps=64, blocks=32),
    "sm_86": Multiprocessor(99 * _KB, 100 * _KB, warps=48, blocks=16),
    "sm_89": Multiprocessor(99 * _KB, 100 * _KB, warps=48, blocks=24),
    "sm_90": Multiprocessor(227 * _KB, 228 * _KB, warps=64, blocks=32),
    "sm_100": Multiprocessor(227 * _KB, 228 * _KB, warps=64, blocks=32),
    "sm_120": Multiprocessor(99 * _KB, 100 * _KB, warps=48, blocks=24),
    "gfx942": Multiprocessor(
        64 * _KB, 64 * _KB, warps=32, blocks=16, lanes=64, registers=4 * 64 * 512, reserved_bytes=0
    ),
}
_SCHEDULERS = 4  # each has a quarter of the registers, and the warps that take them
_GRANULE = 8  # registers of a thread


def blocks(multiprocessor: Multiprocessor, warps: int, registers: int, shared_bytes: int) -> int:
    """Blocks of so many warps, of threads with so many registers: 0 where one does not fit."""
    if shared_bytes > multiprocessor.block_bytes:
        return 0
    taken = max(_GRANULE, -(-registers // _GRANULE) * _GRANULE) * multiprocessor.lanes  # of a warp
    resident = min(multiprocessor.warps, multiprocessor.registers // _SCHEDULERS // taken * _SCHEDULERS)
    memory = multiprocessor.shared_bytes // max(1, shared_bytes + multiprocessor.reserved_bytes)
    return min(multiprocessor.blocks, resident // warps, memory)
