# SPDX-License-Identifier: Apache-2.0
"""User sequences with titles and splits, and the samples that they make."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Samples(NamedTuple):
    """S samples of one split, ready for `Packer.pack`."""

    histories: tuple[NDArray[np.int32], NDArray[np.int64]]  # flat item ids (N,), offsets (S + 1,)
    targets: NDArray[np.int32]  # (S,) item ids


@dataclass(frozen=True, eq=False)
class Dataset:
    """The interactions of U users.

    Attributes:
        items: (N,) int32 item ids, users one after another, each user's oldest first.
        offsets: (U + 1,) int64, user u is `items[offsets[u]:offsets[u + 1]]`; no user is empty.
        titles: item id -> title, for at least every id in `items`.
        splits: split name -> (U, 2) int32, the first and the last position of the user's targets in
            that split, inclusive; -1, -1 where the user has none.
    """

    items: NDArray[np.int32]
    offsets: NDArray[np.int64]
    titles: dict[int, str]
    splits: dict[str, NDArray[np.int32]]

    def __len__(self) -> int:
        """The number of users."""
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        return f"Dataset({len(self)} users, {len(self.titles)} items, {len(self.items)} interactions)"

    def split(self, name: str, max_items: int | None = 100, min_position: int = 3) -> Samples:
        """The samples of a split: for the target at position i, the history is `items[i - K:i]`.

        Args:
            name: "train", "val" or "test".
            max_items: K, the most items of a history; None keeps all.
            min_position: targets at earlier positions are skipped (the paper's 3); at least 1.

        Returns:
            Samples, users in order, each user's oldest target first.

        Raises:
            ValueError: an unknown split, or a bound below 1.
        """
        if name not in self.splits:
            raise ValueError(f"name: expected one of {sorted(self.splits)}, got {name!r}")
        if max_items is not None and max_items < 1:
            raise ValueError(f"max_items: expected at least 1, got {max_items}")
        if min_position < 1:
            raise ValueError(f"min_position: expected at least 1, got {min_position}")
        first, last = self.splits[name].astype(np.int64).T  # (U,)
        first = np.maximum(first, min_position)
        counts = np.maximum(last + 1 - first, 0)  # (U,) a user without targets has last == -1
        position = np.repeat(first, counts) + _steps(counts)  # (S,) inside the user's sequence
        target = np.repeat(self.offsets[:-1], counts) + position  # (S,) inside items
        lengths = position if max_items is None else np.minimum(position, max_items)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        history = np.repeat(target - lengths, lengths) + _steps(lengths)
        return Samples((self.items[history], offsets), self.items[target])


def _steps(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, ..., count - 1 for each count, one after another."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
