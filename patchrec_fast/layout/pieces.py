# SPDX-License-Identifier: Apache-2.0
"""What prompts are made of: pieces, each a slice of one token pool, and a number that says which piece it is.

The pool holds the prefix, the suffix and, for every item, `separator title end-of-turn`, so that "separator and title"
and "title and end-of-turn" are one slice too. A piece is at most one leading separator, which is a row of its own, and
then its other tokens: a row each (text), or all of them one item (patch) that opens a row or joins the row before it.

Its code is 4 * title + 2 * (no separator) + patch, where the prefix and the suffix count as titles 0 and 1, and those
of the catalogue from 2 on. Codes of pieces that join a row come after all others.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..ragged import counting, to_offsets
from .catalogue import Catalogue
from .prompt import Prompt
from .units import Units

_AROUND = 2  # titles of the prompt
_PREFIX, _SUFFIX = 2, 6


class Pieces(NamedTuple):
    """P pieces in the order of their rows, and one without tokens, whose item and row close both levels of offsets."""

    start: NDArray[np.int64]  # (P + 1,) where its tokens start in the pool
    tokens: NDArray[np.int64]  # (P + 1,)
    items: NDArray[np.int64]  # (P + 1,) items that start in it
    rows: NDArray[np.int64]  # (P + 1,) rows that start in it


class Pool:
    """The tokens that a prompt can hold, and the codes of the pieces.

    Attributes:
        tokens: (T,) int32.
        joins: codes from here on are of pieces that join the row before them.
    """

    def __init__(self, catalogue: Catalogue, prompt: Prompt) -> None:
        around = [len(prompt.prefix), len(prompt.suffix)]
        lengths = np.diff(catalogue.offsets).astype(np.int64)
        titles = sum(around) + 1 + catalogue.offsets[:-1] + 2 * np.arange(len(catalogue))
        self.tokens = np.empty(sum(around) + len(catalogue.token_ids) + 2 * len(catalogue), np.int32)
        self.tokens[: sum(around)] = np.concatenate([prompt.prefix, prompt.suffix])
        self.tokens[titles - 1] = prompt.separator
        self.tokens[titles + lengths] = prompt.end_of_turn
        self.tokens[counting(titles, lengths)] = catalogue.token_ids
        self.joins = 4 * (_AROUND + len(catalogue))
        self._start = np.concatenate([[0, around[0]], titles])  # (2 + I,) of a title in the pool
        self._lengths = np.concatenate([around, lengths])  # (2 + I,) tokens of a title
        self._separators = prompt.separators

    def codes(self, position: NDArray[np.int64], found: Units) -> NDArray[np.int64]:
        """(M,) of the kept items of histories, which are at these positions of the catalogue.

        A patch of one token is its text, and has its code.
        """
        codes = 4 * position + (4 * _AROUND + 2)
        codes -= 2 * found.separated(self._separators)
        if found.patched.any():
            codes += found.patched & (self._lengths[position + _AROUND] > 1)
            if not found.opens.all():
                codes = np.where(found.opens, codes, position + (self.joins + _AROUND))
        return codes

    def prompts(
        self, history: NDArray[np.int64], lengths: NDArray[np.int64], target: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The codes of whole prompts, (P,), and where each begins, (B + 1,).

        Args:
            history: (M,) codes of the histories.
            lengths: (B,) how many each history has.
            target: (B,) positions in the catalogue of the answers, which `expand` then has to know of.
        """
        begin = to_offsets(lengths + (_AROUND if target is None else _AROUND + 1))
        suffix = begin[:-1] + lengths + 1
        codes = np.empty(begin[-1], np.int64)
        inside = np.ones(len(codes), bool)
        for at, code in ((begin[:-1], _PREFIX), (suffix, _SUFFIX)):
            codes[at], inside[at] = code, False
        if target is not None:
            codes[suffix + 1], inside[suffix + 1] = 4 * target + (4 * _AROUND + 2), False
        codes[inside] = history
        return codes, begin

    def expand(self, codes: NDArray[np.int64], answers: NDArray[np.int64] | None) -> Pieces:
        """The pieces of these codes, (P,). Those at `answers` have end-of-turn behind their title."""
        title, patch, bare = codes >> 2, (codes & 1).astype(bool), (codes & 2).astype(bool)
        joined = codes >= self.joins
        if any_joined := bool(joined.any()):
            title = np.where(joined, codes - self.joins, title)
            patch |= joined
            bare |= joined
        length = self._lengths[title]
        pieces = np.empty((len(Pieces._fields), len(codes) + 1), np.int64)
        start, tokens, items, rows = pieces[:, :-1]
        np.subtract(self._start[title], ~bare, out=start)
        np.add(length, ~bare, out=tokens)
        np.add(np.where(patch, 1, length), ~bare, out=items)
        if answers is not None:
            tokens[answers] += 1
            items[answers] += 1
        rows[:] = items
        if any_joined:
            rows[joined] = 0
        pieces[:, -1] = 0, 0, 1, 1
        return Pieces(*pieces)
