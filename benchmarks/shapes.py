# SPDX-License-Identifier: Apache-2.0
"""The batches that compress is timed on: real users through the real packer, PFT-S."""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchrec_fast import PackedBatch, Packer, SessionPatches
from patchrec_fast.data import Dataset
from patchrec_fast.ops.compress import make_plan

from .source import Source, load

VOCABULARY, WIDTH = 128_259, 2048  # Llama-3.2-1B with the three marks
QUICK_WIDTH = 256
TABLES = 2  # copies of the table, used in turn, so that no row of the last call is still in cache


@dataclass(frozen=True)
class Shape:
    """`users` histories of `items` items each, in sessions of `group`."""

    name: str
    data: str
    users: int
    items: int
    group: int

    def __str__(self) -> str:
        return f"{self.name}: {self.users} users x {self.items} items, g={self.group}"


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("A16", "ml-1m", users=16, items=100, group=5),  # the paper's batch
        Shape("A", "ml-1m", users=64, items=100, group=5),
        Shape("B", "goodreads", users=64, items=100, group=10),
        Shape("C", "ml-1m", users=16, items=1435, group=20),  # the longest user's length
    )
}
LONG = Shape("long", "ml-1m", users=64, items=1435, group=20)
"""On a GPU only: more bytes than any cache there holds."""
LOOP = Shape("loop", "ml-1m", users=1, items=6, group=2)
"""Where the paper's loop is timed backward: seconds for its four compressed items, minutes for A16."""
BATCHES = 4

load_source = cache(load)


def batches(shape: Shape, source: Source, count: int = BATCHES, plan: bool = False) -> list[PackedBatch]:
    """`count` different batches of the same shape, without targets; with the GPU's plan or not."""
    rng = np.random.default_rng(0)
    packer = Packer(source.catalogue, source.prompt, SessionPatches(shape.group), shape.items)
    users = _users(source.dataset, shape, count, rng)  # (count, users)
    packed = [packer.pack([history(source.dataset, user, shape.items, rng) for user in part]) for part in users]
    made = [spread(batch, source) for batch in packed]
    return [replace(batch, plan=make_plan(batch.ids, batch.offsets)) for batch in made] if plan else made


def spread(batch: PackedBatch, source: Source) -> PackedBatch:
    """A small tokenizer's ids, spread over the table as a large one's are.

    Side by side in the first 2 % of the table they would share pages, and a dense gradient would
    look 30 times cheaper than it is.
    """
    vocabulary = source.prompt.num_embeddings
    if vocabulary * 2 > VOCABULARY:
        return batch
    places = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(0))[:vocabulary]
    return replace(batch, ids=places.int()[batch.ids])


def _users(dataset: Dataset, shape: Shape, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(count, users) drawn from the users long enough, or else from the longest there are."""
    wanted = count * shape.users
    order = np.argsort(-np.diff(dataset.offsets), kind="stable")
    enough = int((np.diff(dataset.offsets) >= shape.items).sum())
    pool = order[: max(enough, wanted)]
    return rng.permutation(np.resize(pool, max(len(pool), wanted)))[:wanted].reshape(count, -1)


def history(dataset: Dataset, user: int, items: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The user's newest `items` items; older ones are made up by popularity where there are fewer."""
    own = dataset.items[dataset.offsets[user] : dataset.offsets[user + 1]][-items:]
    if len(own) == items:
        return own.astype(np.int64)
    ids, counts = np.unique(dataset.items, return_counts=True)
    weight = np.where(np.isin(ids, own), 0, counts)
    made_up = rng.choice(ids, items - len(own), replace=False, p=weight / weight.sum())
    return np.concatenate([made_up, own]).astype(np.int64)


def tables(dtype: torch.dtype, width: int = WIDTH, device: str = "cpu") -> list[Tensor]:
    """Leaf tables (VOCABULARY, width) of O(1) normal values; all copies hold the same."""
    generator = torch.Generator(device).manual_seed(0)
    first = torch.empty(VOCABULARY, width, dtype=dtype, device=device).normal_(generator=generator)
    return [first.requires_grad_(), *(first.detach().clone().requires_grad_() for _ in range(1, TABLES))]


@dataclass(frozen=True)
class Size:
    """What a batch makes compress read and write."""

    tokens: int  # T
    rows: int  # R
    distinct: int  # U

    @classmethod
    def of(cls, batch: PackedBatch) -> "Size":
        return cls(len(batch.ids), len(batch.position_ids), len(batch.ids.unique()))

    def least_rows_moved(self, mode: str) -> int:
        """Rows of d elements that memory must read or write, if a cache serves all that is read again.

        As `table_rows_moved`, each row counted once: U gathered, R written; R of the output's gradient read.
        """
        backward = {
            "forward": 0,
            "sparse": self.rows + self.distinct,
            "accumulate": self.rows + 2 * self.distinct,
            "dense": self.rows + VOCABULARY,
        }
        return self.distinct + self.rows + backward[mode]

    def table_rows_moved(self, mode: str) -> int:
        """Rows of d elements that the mode has to read or write, each occurrence counted.

        Forward: T gathered and R written. Backward: T rows of the output's gradient gathered, then U
        rows written (sparse), U read and written (accumulate) or all V written, most of them zero
        (dense). dense+sgd reads the V rows, and reads and writes V rows of the table.
        """
        backward = {
            "forward": 0,
            "sparse": self.tokens + self.distinct,
            "accumulate": self.tokens + 2 * self.distinct,
            "dense": self.tokens + VOCABULARY,
            "dense+sgd": self.tokens + 4 * VOCABULARY,
        }
        return self.tokens + self.rows + backward[mode]
