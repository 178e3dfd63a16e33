# SPDX-License-Identifier: Apache-2.0
"""`Ranker`: what `evaluate` asks of a recommender, with a language model or without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..layout.histories import Histories

MISS = -1
"""The rank of a target that is not among the answers."""


@dataclass(frozen=True, eq=False)
class Ranked:
    """The answers for B users, best first.

    Attributes:
        items: (B, k) int64 item ids; -1 where there are no more.
    """

    items: NDArray[np.int64]

    def __len__(self) -> int:
        """The number of users."""
        return len(self.items)


@runtime_checkable
class Ranker(Protocol):
    """Any recommender: a class with these two methods is one, and need not inherit.

    `evaluate` calls either with histories as a list of (n,) int64 arrays of item ids, oldest first, none empty. What
    else a ranker has, it uses:

    - `catalogue`, a `Catalogue`: items that it has under one number (`Catalogue.answers`) are one answer.
    - `engine()`: a context manager, which all calls are made inside.
    - `device`, a torch.device: whose memory is measured; without it the process's.
    - `settings()`: a dict of JSON values, for the report.
    - `fingerprint()`: a dict of JSON values, of all that its answers depend on. An evaluation can then be resumed
      (`out=`), and not by another ranker.
    - a parameter `batch_size` of either method: it is given the number of users of the call.
    - of what `recommend` returns: `rows`, an int, and `seconds`, by part of the work.
    """

    def rank(self, histories: Histories, targets: ArrayLike, /) -> NDArray[np.int64]:
        """(B,) the place of each history's target among all titles, 1 for the best; -1 where it has none."""
        ...

    def recommend(self, histories: Histories, k: int, /) -> Ranked:
        """The k best items of each history, (B, k)."""
        ...
