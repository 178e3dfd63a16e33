# SPDX-License-Identifier: Apache-2.0
"""The fewest rows that the prompts of an epoch can be read in, however they are shared."""

import numpy as np

from patchrec_fast import Packer
from patchrec_fast.layout.histories import how_many
from patchrec_fast.layout.history import History
from patchrec_fast.layout.units import units
from patchrec_fast.ragged import Ragged, counting
from patchrec_fast.train.by_user import Passes

EVERYONE = 2**31 - 1  # targets of a pass that has all of a user's


def floor(packer: Packer, runs: Passes) -> int:
    """The template's beginning once; of each run each distinct row of its histories once, whatever stands before it;
    and of each target the rows that no other prompt has: the suffix and the answer.

    A title that is text in one prompt and an item patch in another has the rows of both; so has an item in two
    different sessions. No sharing within the runs reads fewer rows; one that keeps what stands before a row, as a model
    needs it, reads more.

    Args:
        packer: its catalogue, prompt, policy (a deterministic one that leaves out nothing), max_items and step.
        runs: all of a user's targets in one run, for what no sharing within users can beat.
    """
    prompt, catalogue = packer.prompt, packer.catalogue
    titles = np.diff(catalogue.offsets).astype(np.int64)  # (I,) tokens
    total = len(prompt.prefix)
    for user, first, last in zip(runs.user.tolist(), runs.first.tolist(), runs.last.tolist(), strict=True):
        items = Ragged(*runs.sequences).slice(user, user + 1)[0][: last + 1]
        tokens = titles[catalogue.index(items)]  # (n,)
        before = np.arange(first, last + 1)  # (B,) items that each target comes after
        kept = how_many(before, packer.max_items, packer.step)
        places = counting(before - kept, kept)  # (N,) in `items`, of all prompts
        found = units(packer.policy, History(kept, places, len(items)), np.random.default_rng(0))
        begin = np.flatnonzero(found.opens)
        start, size = places[begin], np.diff(begin, append=len(places))
        patched = found.patched[begin]
        _, distinct = np.unique((start * (len(items) + 1) + size) * 2 + patched, return_index=True)
        total += int(np.where(patched, 1, tokens[start])[distinct].sum())
        total += len(np.unique(places[found.separated(prompt.separators)]))
        total += int((tokens[first:] + 1).sum()) + len(before) * len(prompt.suffix)
    return total
