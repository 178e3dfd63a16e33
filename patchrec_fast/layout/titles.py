# SPDX-License-Identifier: Apache-2.0
"""Text histories in which titles are learnt where they stand, several in one prompt."""

from __future__ import annotations

from copy import copy

import numpy as np
import torch
from numpy.typing import ArrayLike

from ..ragged import counting, to_offsets
from .batch import PackedBatch
from .histories import Histories, flatten, how_many
from .packing import Packer, target_places
from .policies import Text


def pack_titles(packer: Packer, sequences: Histories, first: ArrayLike, last: ArrayLike) -> PackedBatch:
    """One text history a user: that of the last target, with this target as its newest item; all targets are learnt.

    Of a title its tokens are learnt and the row behind them, a separator or the suffix's first, which says that it
    ends. A target costs no rows but its own, and sees the items before it in this history: fewer than
    `Packer.pack_targets` shows it, unless it is the last.

    Args:
        packer: all of it is used but the policy.
        sequences, first, last: as `Packer.pack_targets` takes them.

    Returns:
        PackedBatch of a prompt for each user with targets, users in order.

    Raises:
        TypeError, ValueError: as `Packer.pack_targets`; more targets of a user than items of the last one's history,
            for the oldest item has nothing before it.
    """
    flat, offsets = flatten(sequences)
    start, counts = target_places(np.diff(offsets), first, last)  # (U,)
    begin, start, counts = (part[counts > 0] for part in (offsets[:-1], start, counts))  # (B,)
    before = start + counts - 1  # (B,) items before the last target
    kept = how_many(before, packer.max_items, packer.step)
    if (lost := counts > kept).any():
        raise ValueError(
            f"first, last: got {counts[lost][0]} targets, the last with a history of {kept[lost][0]} items; expected "
            "no more than these"
        )
    lengths = kept + 1
    items = flat[counting(begin + before - kept, lengths)]  # (N,)
    as_text = copy(packer)
    as_text.policy, as_text.max_items, as_text.step = Text(), None, 1  # the items are chosen
    batch = as_text.pack((items, to_offsets(lengths)))

    in_batch = batch.prompts(torch.arange(len(batch.position_ids)))  # (rows of the prompt,) each
    prompt_at = to_offsets(np.array([len(rows) for rows in in_batch]))
    catalogue = packer.catalogue
    place = catalogue.index(items)
    tokens = (catalogue.offsets[place + 1] - catalogue.offsets[place]).astype(np.int64)  # (N,)
    title_at = to_offsets(tokens + 1)  # (N + 1,) each with the row behind it, were all one prompt's
    prompt = np.repeat(np.arange(len(lengths)), lengths)  # (N,)
    shift = prompt_at[:-1] + len(packer.prompt.prefix) - title_at[to_offsets(lengths)[:-1]]  # (B,)
    learnt = counting(to_offsets(lengths)[1:] - counts, counts)  # (M,) of the N items
    at = torch.from_numpy(counting((title_at[:-1] + shift[prompt])[learnt], tokens[learnt] + 1))  # in the prompts
    row_of = torch.cat(in_batch)
    return batch.with_targets(row_of[at], before=row_of[at - 1])
