# SPDX-License-Identifier: Apache-2.0
"""The catalogue: every title tokenised once, as one CSR of token ids."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..ragged import to_offsets
from .histories import integers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..data import Ids

_FEW = 3  # titles that a warning names
_DENSE_SPAN = 16  # a dense id table may be this many times longer than the catalogue: 64 bytes an item


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Titles and their tokens. An item's *position* is its place in these arrays; its *id* is the
    caller's.

    A title *is* its tokens, here and wherever answers are searched, excluded, ranked and counted: what
    a model generates cannot tell apart items whose titles have the same. They are one answer.

    Attributes:
        token_ids: (N_tok,) int32, the titles' tokens, one title after another.
        offsets: (I + 1,) int32, title i is `token_ids[offsets[i]:offsets[i + 1]]`; no title is
            empty.
        item_ids: (I,) int64, unique, none negative, in the order given.
        titles: I strings.
        ids: item id -> the source's own id, which answers and messages have; None where they are the same.
    """

    token_ids: NDArray[np.int32]
    offsets: NDArray[np.int32]
    item_ids: NDArray[np.int64]
    titles: list[str] = field(repr=False)
    ids: Ids | None = field(default=None, repr=False)

    @classmethod
    def from_titles(
        cls,
        titles: Mapping[int, str] | Iterable[tuple[int, str]],
        tokenizer: PreTrainedTokenizerBase,
        ids: Ids | None = None,
    ) -> Catalogue:
        """Tokenise every title alone, without special tokens, in one call of the tokenizer.

        A special token spelled out inside a title ("<|eot_id|>") is plain text here, so that no
        title can end a prompt early.

        Warns of titles that differ and have the same tokens, and of titles of unknown tokens alone.

        Args:
            titles: item id -> title, or (item id, title) pairs.
            tokenizer: a Hugging Face tokenizer.
            ids: `Dataset.item_ids`, or None.

        Raises:
            TypeError: an item id that is not an integer, or a title that is not a string.
            ValueError: no titles, a repeated item id, one that is negative, above 2**63 - 1 or without an own
                id, a title that tokenises to nothing or that UTF-8 cannot hold (a lone surrogate).
        """
        pairs = list(titles.items() if isinstance(titles, Mapping) else titles)
        if not pairs:
            raise ValueError("titles: got none, expected at least one item")
        for item, title in pairs:
            if isinstance(item, bool) or not isinstance(item, int | np.integer):
                raise TypeError(f"titles: expected integer item ids, got {item!r} ({type(item).__name__})")
            if not isinstance(title, str):
                raise TypeError(f"titles: expected a string for item {item}, got {title!r} ({type(title).__name__})")
            try:
                title.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"titles: the title {title!r} of item {item} is not Unicode: {error.reason}"
                ) from error
        item_ids = integers("titles", [item for item, _ in pairs])
        unique, counts = np.unique(item_ids, return_counts=True)
        if len(unique) < len(item_ids):
            raise ValueError(f"titles: item {unique[counts > 1][0]} is given {counts.max()} times, expected once")

        texts = [title for _, title in pairs]
        tokens = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False)[
            "input_ids"
        ]
        lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
        if not lengths.all():
            empty = int(np.flatnonzero(lengths == 0)[0])
            item = item_ids[empty] if ids is None else repr(ids.of(item_ids[empty]))
            raise ValueError(f"titles: the title {texts[empty]!r} of item {item} tokenises to nothing")
        made = cls(
            token_ids=np.concatenate([np.asarray(t, np.int32) for t in tokens]),
            offsets=to_offsets(lengths).astype(np.int32),
            item_ids=item_ids,
            titles=texts,
            ids=ids,
        )
        made._warn(tokenizer.unk_token_id)
        return made

    @classmethod
    def of_bytes(cls, titles: Mapping[int, str]) -> Catalogue:
        """The bytes of the titles' UTF-8 are their tokens: for recommenders without a language model.

        Items whose titles are the same string are one answer, as under any tokenizer that loses nothing.

        Args:
            titles: item id -> title.

        Raises:
            TypeError: an item id that is not an integer.
            ValueError: no titles, an id that is negative, or a title that is empty or that UTF-8 cannot hold.
        """
        if not titles:
            raise ValueError("titles: got none, expected at least one item")
        tokens = [np.frombuffer(title.encode(), np.uint8).astype(np.int32) for title in titles.values()]
        if empty := [item for item, token in zip(titles, tokens, strict=True) if not len(token)]:
            raise ValueError(f"titles: the title of item {empty[0]} is empty")
        offsets = to_offsets(np.array([len(token) for token in tokens])).astype(np.int32)
        return cls(np.concatenate(tokens), offsets, integers("titles", list(titles)), list(titles.values()))

    def __post_init__(self) -> None:
        integers("item_ids", self.item_ids)
        if self.ids is not None:
            self.own(self.item_ids)

    def __len__(self) -> int:
        return len(self.item_ids)

    def __repr__(self) -> str:
        return f"Catalogue({len(self)} items, {self.mean_tokens:.1f} tokens a title)"

    @property
    def mean_tokens(self) -> float:
        """Mean number of tokens of a title, each item of the catalogue counted once."""
        return len(self.token_ids) / len(self)

    @cached_property
    def answers(self) -> NDArray[np.int64]:
        """(I,) int64: numbers the titles; items whose titles have the same tokens have one number, 0, 1, ... in the
        order of their first items."""
        number: dict[bytes, int] = {}
        tokens = np.split(self.token_ids, self.offsets[1:-1])
        return np.fromiter((number.setdefault(each.tobytes(), len(number)) for each in tokens), np.int64, len(self))

    def own(self, item_ids: NDArray[np.int64]) -> list[int | str]:
        """The source's own ids of items.

        Raises:
            ValueError: an item without one.
        """
        known: list[int] = item_ids.tolist()
        return [*known] if self.ids is None else self.ids.of_all(known)

    def name(self, position: int) -> str:
        """An item for a message: the title and the own id."""
        [own] = self.own(self.item_ids[position : position + 1])
        return f"the title {self.titles[position]!r} of item {own!r}"

    def check_end(self, end: int) -> None:
        """Raise ValueError where a title holds the token that ends titles."""
        inside = np.flatnonzero(self.token_ids == end)
        if len(inside):
            position = int(np.searchsorted(self.offsets, inside[0], side="right")) - 1
            raise ValueError(f"catalogue: {self.name(position)} holds the end-of-turn token {end}")

    def _warn(self, unknown: int | None) -> None:
        """Of titles that a model cannot tell apart, or knows nothing of."""
        first = np.unique(self.answers, return_index=True)[1][self.answers]  # (I,) the first item of the title
        twins = np.flatnonzero(first != np.arange(len(self))).tolist()
        alike = [at for at in twins if self.titles[at] != self.titles[first[at]]]
        if alike:
            few = "; ".join(f"{self.name(at)} and {self.name(first[at])}" for at in alike[:_FEW])
            warnings.warn(
                f"titles: {len(alike)} differ from another title but have its tokens and are one answer with it: {few}",
                stacklevel=3,
            )
        unknowns = np.logical_and.reduceat(self.token_ids == unknown, self.offsets[:-1])
        if unknowns.any():
            at = np.flatnonzero(unknowns)
            few = "; ".join(map(self.name, at[:_FEW].tolist()))
            warnings.warn(f"titles: {len(at)} are unknown tokens alone to this tokenizer: {few}", stacklevel=3)

    def index(self, item_ids: ArrayLike) -> NDArray[np.int64]:
        """Positions of items in the catalogue.

        Args:
            item_ids: (N,) integers.

        Returns:
            (N,) int64.

        Raises:
            TypeError: ids that are not integers.
            ValueError: an id that the catalogue does not have; the message names it.
        """
        wanted = integers("item_ids", item_ids)
        base, table = self._dense
        if table is None:
            order, ids = self._sorted
            place = np.minimum(np.searchsorted(ids, wanted), len(self) - 1)
            found, known = order[place], ids[place] == wanted
        else:
            shift = wanted - base  # an id below base wraps to a huge unsigned number
            found = table.take(shift, mode="clip")
            known = (shift.view(np.uint64) < len(table)) & (found >= 0)
        if not known.all():
            strangers = wanted[~known]
            raise ValueError(
                f"item_ids: {strangers[0]} is not in the catalogue of {len(self)} items "
                f"({len(strangers)} of the {wanted.size} ids given are not)"
            )
        return found

    @cached_property
    def _dense(self) -> tuple[int, NDArray[np.int64] | None]:
        """(smallest id, position of each id from there up or -1), or no table where ids are far
        apart."""
        base, last = int(self.item_ids.min()), int(self.item_ids.max())
        if last - base >= _DENSE_SPAN * len(self):
            return base, None
        table = np.full(last - base + 1, -1, np.int64)
        table[self.item_ids - base] = np.arange(len(self))
        return base, table

    @cached_property
    def _sorted(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(positions in the order of their ids, those ids)."""
        order = np.argsort(self.item_ids)
        return order, self.item_ids[order]
