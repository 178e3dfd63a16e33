# SPDX-License-Identifier: Apache-2.0
"""What `Recommender.recommend` returns."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .._text import printable
from ..layout import Catalogue
from .ranker import Ranked

_MOST, _BEAMS = 10_000, 20
_USERS, _TITLES = 5, 3  # shown


def most_answers(titles: int) -> int:
    """The largest k: as many as there are titles, or where those are few still so many, and the rest is -1."""
    return max(titles, _MOST)


def default_beams(k: int) -> int:
    """How many beams find k titles: one finds its way to the best title less often than twenty."""
    return max(k, _BEAMS)


@dataclass(frozen=True, eq=False)
class Recommendations(Ranked):
    """The answers for B users, best first.

    Attributes:
        items: (B, k) int64 item ids; -1 where there are no more. Items that share a title are one answer, and this is
            the first of them in the catalogue, with `exclude_seen` the first unseen.
        log_probs: (B, k) float32, the log-probability of the title and its end; -inf beside -1.
        scores: (B, k) float32, by which they are ordered: log_probs, unless lengths or repetitions are penalised.
        num_scored: (B,) int64, how many trie nodes' children were given probabilities.
        rows: of the prompts, of all users: the language model's tokens. The prefix counts for each user, though all
            users of a call share one reading of it.
        rows_read: those that the model has read, the others being shared or kept (`Recommender.engine`).
        seconds: wall time of all users by part: "pack", "prompt" and "decode".
        catalogue: of the items.
    """

    log_probs: NDArray[np.float32]
    scores: NDArray[np.float32]
    num_scored: NDArray[np.int64]
    rows: int
    rows_read: int
    seconds: dict[str, float]
    catalogue: Catalogue = field(repr=False)

    def __repr__(self) -> str:
        lines = [f"Recommendations({len(self)} users, k={self.items.shape[1]})"]
        for user, titles in enumerate(self._titles(self.items[:_USERS])):
            more = ", ..." if len(titles) > _TITLES else ""
            lines.append(f"  {user}: {', '.join(map(printable, titles[:_TITLES])) or 'none'}{more}")
        return "\n".join([*lines, "  ..."] if len(self) > _USERS else lines)

    def ids(self) -> list[list[int | str]]:
        """Each user's items as many as exist, by the source's own ids: those of `Dataset.item_ids`, where the catalogue
        was made with them, otherwise as in `items`."""
        return [self.catalogue.own(user[user >= 0]) for user in self.items]

    def titles(self) -> list[list[str]]:
        """Each user's titles, as many as exist."""
        return self._titles(self.items)

    def _titles(self, items: NDArray[np.int64]) -> list[list[str]]:
        known = [user[user >= 0] for user in items]
        return [[self.catalogue.titles[at] for at in self.catalogue.index(user)] for user in known]
