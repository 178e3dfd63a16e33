# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.predictions --data DIR --tokenizer DIR`: times that GPUs should take, of bytes and bandwidth.

They go to results/predictions.csv. Nothing is measured: the bytes that must be moved, counted on the real batches, over
the bandwidth of the card's data sheet, which no kernel reaches whole. The lower number has what is read twice come from
the cache, the higher one from memory.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from patchrec_kernels import tree_attention
from triton import cdiv

from . import checkout, results
from .occupancy import MULTIPROCESSORS, TARGETS
from .results import Row
from .shapes import SHAPES, WIDTH, Size, batches, load_source

ITEMSIZE = 2  # bf16


@dataclass(frozen=True)
class Card:
    """Bandwidth in GB/s as the vendor's data sheet has it."""

    name: str
    arch: str
    gb_s: int
    multiprocessors: int


CARDS = (
    Card("A100 SXM 80GB", "sm_80", 2_039, 108),
    Card("RTX A6000", "sm_86", 768, 84),
    Card("L40S", "sm_89", 864, 142),
    Card("H100 SXM", "sm_90", 3_350, 132),
    Card("H200", "sm_90", 4_800, 132),
    Card("B200", "sm_100", 8_000, 148),
    Card("RTX 5090", "sm_120", 1_792, 170),
    Card("MI300X", "gfx942", 5_300, 304),
)


@dataclass(frozen=True)
class Bytes:
    """What is moved, where what is read twice comes from the cache, and where it does not."""

    low: int
    high: int


def compress(size: Size, index_bytes: int, mode: str) -> Bytes:
    """A forward, or forward and backward into an existing gradient, of rows of WIDTH elements.

    At best each of the U table rows is read once, and in the backward each of the R rows of the gradient.
    """
    least = size.distinct + size.rows
    if mode == "accumulate":
        least += size.rows + 2 * size.distinct
    low, high = (n * WIDTH * ITEMSIZE + index_bytes for n in (least, size.table_rows_moved(mode)))
    return Bytes(min(low, high), high)


@dataclass(frozen=True)
class Step:
    """One layer's attention in a decode step of Llama-3.2-1B: users with so many beams, each behind its own prompt."""

    prompt_rows: int
    users: int = 16
    beams: int = 20
    path: int = 5  # rows of a beam's own, about a title
    query_heads: int = 32
    key_heads: int = 8
    d: int = 64

    def bytes(self, card: Card) -> Bytes:
        """Prompts and paths are read; the parts of splits are written and read again. At worst, prompts once a tile."""
        group = self.query_heads // self.key_heads
        shared = MULTIPROCESSORS[card.arch].block_bytes
        tile = tree_attention.tile(self.beams * group, self.d, ITEMSIZE, TARGETS[card.arch], shared)
        tiles = cdiv(self.beams * group, tile.block_m)
        programs = self.users * tiles * self.key_heads
        splits = tree_attention.split_count(programs, self.prompt_rows, tile.block_n, card.multiprocessors)
        rows = self.users * self.beams
        prompts = self.users * self.prompt_rows * 2 * self.key_heads * self.d * ITEMSIZE
        paths = rows * self.path * 2 * self.key_heads * self.d * ITEMSIZE
        queries = 3 * rows * self.query_heads * self.d * ITEMSIZE  # read by both programs, written by one
        parts = 2 * splits * rows * self.query_heads * (self.d + 1) * 4
        rest = paths + queries + parts
        return Bytes(prompts + rest, prompts * tiles + rest)


@cache
def prompt_lengths() -> dict[str, int]:
    """Mean rows of ML-1M's prompts of 100 items, of the record that `benchmarks.rows` makes."""
    (row,) = [
        row
        for row in results.read("rows")
        if (row["data"], row["histories"]) == ("ml-1m", "test split") and row["policy"].startswith("SessionPatches")
    ]
    return {"text": round(float(row["text_rows"])), "PFT-S": round(float(row["rows"]))}


def predict(card: Card, work: str, moved: Bytes) -> Row:
    return {
        "commit": checkout.commit(),
        "card": card.name,
        "arch": card.arch,
        "gb_s": card.gb_s,
        "work": work,
        "low_bytes": moved.low,
        "high_bytes": moved.high,
        "low_us": round(moved.low / card.gb_s / 1e3, 2),
        "high_us": round(moved.high / card.gb_s / 1e3, 2),
    }


def counted(data: str, tokenizer: str) -> Iterator[tuple[str, Bytes]]:
    """What compress moves in each shape and mode."""
    for name in ("A", "B", "C"):
        batch = batches(SHAPES[name], load_source(SHAPES[name].data, data, tokenizer), 1, plan=True)[0]
        assert batch.plan is not None  # asked for
        index_bytes = batch.ids.nbytes + sum(tensor.nbytes for tensor in batch.plan.tensors())
        for mode, shown in (("forward", "forward"), ("accumulate", "+ backward")):
            yield f"compress: {name} {shown}", compress(Size.of(batch), index_bytes, mode)


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.predictions", description=__doc__)
    parser.add_argument("--data", required=True, help="folder with ml-1m and goodreads")
    parser.add_argument("--tokenizer", required=True, help="folder of the Llama-3 tokenizer")
    options = parser.parse_args()
    if not checkout.may_record("benchmarks.predictions"):
        return 2
    moved = list(counted(options.data, options.tokenizer))
    found = []
    for card in CARDS:
        found += [predict(card, work, each) for work, each in moved]
        for name, rows in prompt_lengths().items():
            found.append(predict(card, f"decode step: {name}, {rows} rows", Step(rows).bytes(card)))
    print(results.replace("predictions", found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
