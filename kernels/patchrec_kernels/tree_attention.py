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

from patchrec_kernels._launch import device_of, multiprocessors, target
from patchrec_kernels._tree import read_paths, read_prompts

MOST_SPLITS = 32
PROGRAMS = 2
"""Programs that read prompts, per multiprocessor: two have 64 KB of keys and values under way, and
Little's law asks for 25 KB on an H200 (4.8 TB/s * 0.7 us / 132 multiprocessors; not measured)."""


class Tile(NamedTuple):
    """Queries and keys of a program, the head's columns padded, and each program's options."""

    block_m: int
    block_n: int
    d_tile: int
    prompts: dict[str, Any]
    paths: dict[str, Any]


@functools.cache
def tile(queries: int, group: int, d: int, itemsize: int, backend: str) -> Tile:
    """The tiles for users of so many queries of one key head, `group` to a row.

    8 KB of keys, and as much of values, so that three stages fit every GPU's shared memory. As many
    queries as there are, if the registers hold their sums: fp32's products have no tensor cores and
    keep their operands in registers too. The largest tiles take 8 warps, whose threads need 120 to
    190 registers where those of 4 need 230 or more (bf16, sm_80 to sm_100).
    """
    d_tile = max(16, triton.next_power_of_2(d))
    most = max(16, min(128, 16384 // d_tile) if itemsize == 2 else min(32, 4096 // d_tile))
    block_m = max(16, min(triton.next_power_of_2(queries), most), triton.next_power_of_2(group))
    block_n = max(16, min(64, 8192 // (d_tile * itemsize)))
    fused = {"enable_fp_fusion": True}
    stages = 3 if backend == "cuda" else 2
    large = block_m > 64 or block_m * d_tile > 8192
    prompts = {"num_warps": 8 if large else 4, "num_stages": stages}
    paths = {"num_warps": 2 if d_tile <= 64 else 4, "num_stages": 1}
    return Tile(block_m, block_n, d_tile, prompts | fused, paths | fused)


def split_count(programs: int, max_seqlen: int, block_n: int, multiprocessors: int) -> int:
    """Over how many programs the keys of a prompt are split: a power of two that fills the device, if there are as
    many tiles of keys. `programs` is the number without a split."""
    wanted = min(triton.cdiv(PROGRAMS * multiprocessors, max(1, programs)), triton.cdiv(max_seqlen, block_n))
    return min(MOST_SPLITS, triton.next_power_of_2(max(1, wanted)))


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
        splits: a power of two: over so many programs a prompt is split; None fills the device.
    """
    n, query_heads, d = query.shape
    key_heads, users = key.shape[1], cu_rows.shape[0] - 1
    group = query_heads // key_heads
    out = value.new_empty(n, query_heads, d)
    if out.numel() == 0:
        return out
    max_rows, max_seqlen = min(max_rows, n), min(max_seqlen, key.shape[0])
    block_m, block_n, d_tile, for_prompts, for_paths = tile(
        max_rows * group, group, d, key.element_size(), target(query.device.type)[0]
    )
    tiles = triton.cdiv(max_rows, block_m // group)
    if splits is None:
        programs = users * tiles * key_heads
        splits = split_count(programs, max_seqlen, block_n, multiprocessors(query.device))
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
        read_paths[(n, key_heads)](
            query, tree_key, tree_value, path, cu_rows, users, mean, lse, out,
            *query.stride()[:2], *tree_key.stride()[:2], *tree_value.stride()[:2], path.stride(0),
            n, tree_key.shape[0], path.shape[1],
            SPLITS=splits, BLOCK_G=max(16, triton.next_power_of_2(group)), BLOCK_A=16, **constants, **for_paths,
        )  # fmt: skip
    return out
