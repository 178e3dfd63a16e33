# SPDX-License-Identifier: Apache-2.0
"""How many rows the prompts of a dataset's users have, by the length of the history and the policy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .._options import INSTRUCTION
from ..data import Dataset
from ..evaluation import measure_compression
from ..layout import Catalogue, ItemPatches, Packer, Policy, Prompt, SessionPatches
from ..ragged import Ragged

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENDS = (20, 50, 100, 200, 500)
"""The most items of each group of users but the last."""
POLICIES: dict[str, Policy] = {"PFT-I, N = 5": ItemPatches(5), "PFT-S, g = 5": SessionPatches(5)}
TEXT = "text"


class Group(NamedTuple):
    """Users whose histories have similar lengths; means."""

    name: str
    users: int
    items: float
    rows: dict[str, float]  # of a whole prompt, template and separators included; by policy


def by_length(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> Iterator[Group]:
    """The groups that have users, shortest histories first; whole histories, nothing cut.

    Args:
        dataset: its sequences are the histories.
        tokenizer: counts the titles' tokens; the marks are added where they are missing, as `Prompt` says.
    """
    prompt = Prompt(tokenizer, instruction=INSTRUCTION)
    catalogue = Catalogue.from_titles(dataset.titles, tokenizer)
    packers = {name: Packer(catalogue, prompt, policy) for name, policy in POLICIES.items()}
    lengths = np.diff(dataset.offsets)
    group = np.searchsorted(ENDS, lengths)
    for number in np.unique(group):
        chosen = np.flatnonzero(group == number)
        histories = Ragged(dataset.items, dataset.offsets).take(chosen)
        counted = {name: measure_compression(packer, histories) for name, packer in packers.items()}
        text = next(iter(counted.values())).text_rows
        rows = {TEXT: text, **{name: found.rows for name, found in counted.items()}}
        yield Group(_name(number), len(chosen), float(lengths[chosen].mean()), rows)


def _name(number: int) -> str:
    if number == len(ENDS):
        return f"more than {ENDS[-1]}"
    return f"{ENDS[number - 1] + 1 if number else 1} to {ENDS[number]}"
