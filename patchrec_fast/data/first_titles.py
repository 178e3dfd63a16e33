# SPDX-License-Identifier: Apache-2.0
"""Of each item the first title that shows something, over the rows of a table."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrow import arrow
from .titles import plain_line

_SEEN = r"[^\p{Cc}\p{Cf}\p{Z}\s]"  # a character that shows something


class FirstTitles:
    """The titles by number of the item, batch after batch.

    Attributes:
        others: of each item with several titles the first that reads differently from the one that stays.
    """

    def __init__(self) -> None:
        self._texts: dict[int, str] = {}
        self.others: dict[int, str] = {}

    def add(self, items: NDArray[np.int32], column: Any) -> None:
        """Notes the titles of n rows.

        Args:
            items: (n,) numbers of the items.
            column: (n,) their titles, an Arrow array of text with nulls.
        """
        pa, _ = arrow()
        from pyarrow import compute

        coded = column.dictionary_encode()
        shows = compute.match_substring_regex(coded.dictionary, _SEEN).to_numpy(zero_copy_only=False)
        codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        told = np.append(shows, False)[codes]
        items, codes = items[told], codes[told]
        if not len(items):
            return
        first = np.full(items.max() + 1, -1, codes.dtype)  # by item: its first title of these rows
        first[items[::-1]] = codes[::-1]
        found = np.flatnonzero(first >= 0)
        self._note(found, coded.dictionary.take(pa.array(first[found])))
        if (odd := np.flatnonzero(codes != first[items])).size:
            pairs = items[odd].astype(np.int64) * len(shows) + codes[odd]
            odd = odd[np.sort(np.unique(pairs, return_index=True)[1])]
            self._note(items[odd], coded.dictionary.take(pa.array(codes[odd])))

    def texts(self, count: int) -> list[str]:
        """The titles of the items 0 to count - 1, "" where there is none."""
        return [self._texts.get(item, "") for item in range(count)]

    def _note(self, items: NDArray[Any], titles: Any) -> None:
        for item, title in zip(items.tolist(), titles.to_pylist(), strict=True):
            title = title.strip()
            first = self._texts.setdefault(item, title)
            if title != first and item not in self.others and plain_line(title) != plain_line(first):
                self.others[item] = title
