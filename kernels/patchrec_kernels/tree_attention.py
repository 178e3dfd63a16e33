# SPDX-License-Identifier: Apache-2.0
"""`tree_attention` on a GPU: two launches, of sizes that the host knows.

Nothing here asks the device anything, so a CUDA graph can hold the launches, and lengths and paths
may change between its replays.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from patchrec_kernels._launch import device_limits, device_of, target
from patchrec_kernels._tree import read_paths, read_prompts

MOST_SPLITS = 32
PROGRAMS = 2
"""Programs that read prompts, per multiprocessor: two have 64 KB of keys and values under way, and
Little's law asks for 25 KB on an H200 (4.8 TB/s * 0.7 us / 132 multiprocessors; not measured)."""
BLOCK_G = 16
"""Queries of a program that reads paths: the heads of one row, and no fewer than matrix units take."""
REGISTERS = 65_536
"""Of an NVIDIA multiprocessor, of any architecture."""
RESERVED_BYTES = 1024
"""Shared memory that NVIDIA's driver keeps of each program."""


class Tile(NamedTuple):
    """Queries and keys of a program, the head's columns padded, and each program's options."""

    block_m: int
    block_n: int
    d_tile: int
    prompts: dict[str, Any]
    paths: dict[str, Any]


@functools.cache
def tile(queries: int, d: int, itemsize: int, target: GPUTarget, shared_bytes: int) -> Tile:
    """The tiles for users of so many queries of one key head, where a program can have `shared_bytes` at most.

    PROGRAMS of them fit a multiprocessor at once, and nothing is spilled, on every GPU and with every group: 4 warps,
    whose threads may have 255 registers, and a sum of 8,192 elements. Hopper's products leave their operands in shared
    memory, so there 8 warps of 128 registers hold twice the queries of narrow heads. The products of fp32 have no
    matrix units: their operands are in registers too, and leave room for 16 queries.

    8 KB of keys, and as much of values, a stage; three stages, or as many as fit.
    """
    d_tile = max(16, triton.next_power_of_2(d))
    most = min(64, 8192 // d_tile) if itemsize == 2 else 16
    warps = 4
    if target.backend == "cuda" and target.arch == 90 and itemsize == 2 and d_tile <= 64 and queries > most:
        most, warps = 128, 8
    block_m = max(16, min(triton.next_power_of_2(queries), most))
    block_n = max(16, min(64, 8192 // (d_tile * itemsize)))
    # Shared memory holds all stages but one, the queries' weights, and on NVIDIA's the queries; and what is reserved,
    # of which reductions exchange as much again.
    nvidia = target.backend == "cuda"
    reserved = RESERVED_BYTES if nvidia else 0
    room = (shared_bytes + reserved) // PROGRAMS - 2 * reserved - block_m * (block_n + nvidia * d_tile) * itemsize
    stages = max(1, min(3 if nvidia else 2, 1 + room // (2 * block_n * d_tile * itemsize)))
    prompts: dict[str, Any] = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    if nvidia and itemsize == 2:  # left to itself, ptxas spills on sm_100; of fp32 it spills on sm_90 if it is told
        prompts["maxnreg"] = min(255, REGISTERS // (PROGRAMS * warps * target.warp_size))
    paths: dict[str, Any] = {"num_warps": 2 if d_tile <= 64 else 4, "num_stages": 1, "enable_fp_fusion": True}
    if nvidia and itemsize == 4 and d_tile >= 256:  # left to itself, ptxas spills on sm_90 to stay within 128
        paths["maxnreg"] = 160
    return Tile(block_m, block_n, d_tile, prompts, paths)


def split_count(programs: int, keys: int, block_n: int, multiprocessors: int) -> int:
    """Over how many programs so many keys are split: as many as the device holds at once, none without a tile of keys.

    `programs` is the number without a split.
    """
    tiles = max(1, triton.cdiv(keys, block_n))
    wanted = max(1, min(PROGRAMS * multiprocessors // max(1, programs), tiles, MOST_SPLITS))
    return triton.cdiv(tiles, triton.cdiv(tiles, wanted))


def tree_attention(
    query: Tensor,  # (n, Hq, D)
    key: Tensor,  # (R, Hk, D)
    value: Tensor,
    cu_seqlens: Tensor,  # (B + 1,) int32
    tree_key: Tensor,  # (S, Hk, D)
    tree_value: Tensor,
    path: Tensor,  # (n, A) int64
    cu_rows: Tensor,  # (B + 1,) int32
    *,
    max_rows: int,
    max_seqlen: int,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    splits: int | None = None,
) -> Tensor:  # (n, Hq, D)
    """As `patchrec_fast.ops.attention.tree`, which validates. Columns are adjacent; rows and heads any stride apart.

    Prompts, rows and paths that point outside their tensors are cut to what is inside.

    Args:
        splits: over so many programs a prompt is split; None fills the device.
    """
    n, query_heads, d = query.shape
    key_heads, users = key.shape[1], cu_rows.shape[0] - 1
    group = query_heads // key_heads
    out = value.new_empty(n, query_heads, d)
    if out.numel() == 0:
        return out
    max_rows, max_seqlen = min(max_rows, n), min(max_seqlen, key.shape[0])
    device = device_limits(query.device)
    block_m, block_n, d_tile, for_prompts, for_paths = tile(
        max_rows * group, d, key.element_size(), target(query.device.type), device.shared_bytes
    )
    tiles = triton.cdiv(max_rows * group, block_m)
    if splits is None:
        keys = max_seqlen if window is None else min(max_seqlen, window)
        splits = split_count(users * tiles * key_heads, keys, block_n, device.multiprocessors)
    mean = torch.empty(splits, n, query_heads, d, dtype=torch.float32, device=query.device)
    lse = torch.empty(splits, n, query_heads, dtype=torch.float32, device=query.device)
    constants = {
        "D": d, "GROUP": group, "SCALE": scale, "WINDOW": window, "SOFTCAP": softcap, "D_TILE": d_tile,
        "OPERAND": triton.language.float32 if triton.knobs.runtime.interpret else None,
    }  # fmt: skip
    with device_of(query):
        if users * tiles:
            read_prompts[(users * tiles, key_heads, splits)](
                query, key, value, cu_seqlens, path, cu_rows, mean, lse,
                *query.stride()[:2], *key.stride()[:2], *value.stride()[:2], path.stride(0),
                n, key.shape[0], tree_key.shape[0], path.shape[1], tiles,
                BLOCK_M=block_m, BLOCK_N=block_n, **constants, **for_prompts,
            )  # fmt: skip
        read_paths[(n, key_heads * triton.cdiv(group, BLOCK_G))](
            query, tree_key, tree_value, path, cu_rows, users, mean, lse, out,
            *query.stride()[:2], *tree_key.stride()[:2], *tree_value.stride()[:2], path.stride(0),
            n, tree_key.shape[0], path.shape[1], splits,
            BLOCK_G=BLOCK_G, BLOCK_A=16, **constants, **for_paths,
        )  # fmt: skip
    return out
