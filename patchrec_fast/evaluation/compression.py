# SPDX-License-Identifier: Apache-2.0
"""How much shorter a policy makes a prompt: counted in three ways, from titles alone to whole prompts."""

from dataclasses import dataclass

import numpy as np

from ..layout.catalogue import Catalogue
from ..layout.histories import Histories, flatten
from ..layout.history import History
from ..layout.packing import Packer
from ..layout.policies import Policy, Text
from ..layout.units import units
from ..ragged import Ragged

_USERS_AT_ONCE = 4096  # bounds memory; about 2 million tokens


@dataclass(frozen=True)
class Compression:
    """Rows without compression over rows with it, counted from the narrowest to the widest view.

    Attributes:
        catalogue: as the paper counts it: a full history of titles of the catalogue's mean length,
            no separators, no template.
        history: the real histories with their real titles, no separators, no template.
        separated: the same with the separators between units.
        prompt: everything that the language model reads: template, history and separators. This is
            the one that time and memory follow.
        text_rows: mean rows of a whole prompt under `Text`.
        rows: mean rows of a whole prompt under the policy.
        users: how many histories were counted.
    """

    catalogue: float
    history: float
    separated: float
    prompt: float
    text_rows: float
    rows: float
    users: int


def catalogue_ratio(policy: Policy, catalogue: Catalogue, max_items: int = 100, seed: int | None = 0) -> float:
    """The paper's compression ratio, K * tt / (patches + text items * tt).

    tt is the catalogue's mean number of tokens a title, rounded to two decimals as the paper prints
    it and calculates with it (its Table 1; ML-1M's 3.44 is 3.43 with the unrounded mean).
    Separators and template are not counted.

    Args:
        policy: what is compressed.
        catalogue: where tt comes from.
        max_items: K, the length of the history.
        seed: for a random policy, whose one draw is counted.

    Returns:
        1.0 for `Text`; infinity where the policy keeps nothing.
    """
    found = units(policy, History.of(np.array([max_items])), np.random.default_rng(seed))
    patches = int((found.opens & found.patched).sum())
    title = round(catalogue.mean_tokens, 2)
    return _ratio(max_items * title, patches + title * int((~found.patched).sum()))


def measure_compression(packer: Packer, histories: Histories, seed: int | None = 0) -> Compression:
    """Count a packer's prompts against the same prompts as text.

    Args:
        packer: its catalogue, prompt, policy and max_items are used.
        histories: as `Packer.pack` takes them; without targets.
        seed: for a random policy.

    Returns:
        Compression; each ratio is one of sums over all users, so that long histories weigh more.
    """
    given = Ragged(*flatten(histories))
    users = len(given.lengths)
    rng = np.random.default_rng(seed)

    def count(policy: Policy) -> tuple[int, int]:
        """All rows, and those of them that are separators."""
        counter = Packer(packer.catalogue, packer.prompt, policy, packer.max_items, step=packer.step)
        rows = separators = 0
        for begin in range(0, users, _USERS_AT_ONCE):
            batch = counter.pack(given.slice(begin, begin + _USERS_AT_ONCE), seed=rng)
            rows += len(batch.position_ids)
            separators += int((batch.ids == packer.prompt.separator).sum())
        return rows, separators

    template = users * (len(packer.prompt.prefix) + len(packer.prompt.suffix))
    text, text_separators = count(Text())
    packed, separators = count(packer.policy)
    return Compression(
        catalogue=catalogue_ratio(packer.policy, packer.catalogue, packer.max_items or int(given.lengths.max()), seed),
        history=_ratio(text - template - text_separators, packed - template - separators),
        separated=_ratio(text - template, packed - template),
        prompt=text / packed,
        text_rows=text / users,
        rows=packed / users,
        users=users,
    )


def _ratio(text: float, packed: float) -> float:
    return text / packed if packed else np.inf
