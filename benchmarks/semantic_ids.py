# SPDX-License-Identifier: Apache-2.0
"""Items named by three tokens each, as serving engines for semantic ids are measured: one user's prompt of a given
length, and what one of these engines published for it."""

from typing import NamedTuple

import numpy as np

from patchrec_fast import Catalogue, Packer, Prompt, Text
from patchrec_fast.ragged import to_offsets

from .source import bare_prompt

TOKENS = 3  # of an item
CODEBOOK = 1024  # tokens of each place
ITEMS = 100_000
VOCABULARY = 151_936  # Qwen3's


class Published(NamedTuple):
    """A figure of others, quoted and not measured here."""

    contestant: str
    gpu: str
    milliseconds: float
    status: str


PUBLISHED = Published(
    "NVIDIA recsys-examples v26.06, sid-gr-inference",
    "NVIDIA H100",
    17.6,
    "as published: Qwen3-1.7B, context 1000, 256 beams, 3 steps, batch 1; not measured here",
)


def packer_and_history(rows: int, items: int = ITEMS, codebook: int = CODEBOOK) -> tuple[Packer, list[int]]:
    """A packer of such items as text, and a history whose prompt has so many rows.

    Each of an item's three tokens is followed by one step of the search, the last to end the title.

    Raises:
        ValueError: fewer rows than a prompt of one item has.
    """
    rng = np.random.default_rng(0)
    tokens = np.unique(rng.integers(0, codebook, (items, TOKENS)), axis=0) + np.arange(TOKENS) * codebook  # (I, 3)
    catalogue = Catalogue(
        token_ids=tokens.astype(np.int32).ravel(),
        offsets=to_offsets(np.full(len(tokens), TOKENS)).astype(np.int32),
        item_ids=np.arange(len(tokens)),
        titles=["-".join(map(str, item)) for item in tokens.tolist()],
    )
    own = TOKENS + 1  # with the separator before it
    around = 75
    number = (rows - around + 1) // own
    if number < 1:
        raise ValueError(f"rows: expected at least {around + TOKENS}, got {rows}")
    around += rows - (around + own * number - 1)
    first = TOKENS * codebook
    prompt: Prompt = bare_prompt(np.arange(first, first + around, dtype=np.int32), first + around)
    return Packer(catalogue, prompt, Text()), rng.choice(len(tokens), number, replace=False).tolist()
