# SPDX-License-Identifier: Apache-2.0
"""Histories -> one packed batch: the two-level CSR of every row of every prompt.

A prompt is a list of pieces (`.pieces`): numbers as long as it is decided what prompts share, and then slices of one
token pool. Each level of the CSR is one call of `counting` over the pieces, and no Python loop runs over items.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .._check import check_count
from ..ops.attention.segments import levels_of
from ..ragged import Ragged, counting, to_offsets
from .batch import PackedBatch
from .catalogue import Catalogue
from .histories import Histories, flatten, how_many, integers, newest
from .history import History
from .pieces import Pool
from .policies import Policy
from .prompt import Prompt
from .tree import Tree, grow, sort
from .units import units

if TYPE_CHECKING:
    from ..ops.compress import Plan

IGNORE = -100  # the label that torch's cross-entropy leaves out
_INT32_MAX = 2**31 - 1
_PIECES_AT_ONCE = 1 << 18  # bounds memory


class Packer:
    """Builds the prompts of many users as one `PackedBatch`. Picklable; `pack` has no side effect.

    Attributes:
        catalogue, prompt, policy, max_items, plan, share, step: as given.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        prompt: Prompt,
        policy: Policy,
        max_items: int | None = None,
        plan: bool = False,
        share: bool = False,
        step: int = 1,
    ) -> None:
        """Set up.

        Args:
            catalogue: the items that histories may hold.
            prompt: what stands around a history.
            policy: decides what is compressed.
            max_items: keep only the newest items of a history; None keeps all.
            plan: also prepare the work of the compress op on the host (`PackedBatch.plan`).
            share: pack what prompts begin with alike once, as a tree of segments (`PackedBatch.segments`): all but
                each prompt's last piece, which is its answer, or without targets its suffix. An attached model computes
                the same logits and gradients from fewer rows. Dropout, where a model has any, then falls on a
                shared row for all prompts alike.
            step: the oldest items leave so many at a time: `max_items` to `max_items + step - 1` are kept, and the
                beginning of a prompt stays while the history grows. How many depends on how many there have been, so
                histories come whole, or as `Dataset.split(..., step=step)` cuts them.

        Raises:
            ValueError: max_items < 1; step < 1, or more than 1 without max_items;
                a catalogue of another tokenizer; a title that holds the
                end-of-turn token.
        """
        if isinstance(policy, type) or not isinstance(policy, Policy):
            raise TypeError(f"policy: expected an object with assign(lengths, rng), got {policy!r}")
        if max_items is not None:
            check_count("max_items", max_items, minimum=1)
        check_step(step, max_items)
        catalogue.check_end(prompt.end_of_turn)
        if (largest := int(catalogue.token_ids.max())) >= prompt.num_embeddings:
            raise ValueError(
                f"catalogue: token id {largest} is beyond the prompt's vocabulary of "
                f"{prompt.num_embeddings}; make both with one tokenizer"
            )
        self.catalogue = catalogue
        self.prompt = prompt
        self.policy = policy
        self.max_items = max_items
        self.plan = plan
        self.share = share
        self.step = step
        self._pool = Pool(catalogue, prompt)

    def __repr__(self) -> str:
        options = {"max_items": None, "plan": False, "share": False, "step": 1}
        given = [f"{name}={getattr(self, name)!r}" for name, usual in options.items() if getattr(self, name) != usual]
        return f"Packer({', '.join([f'{len(self.catalogue)} items', repr(self.policy), *given])})"

    def pack(
        self,
        histories: Histories,
        targets: ArrayLike | None = None,
        seed: int | np.random.Generator | None = None,
    ) -> PackedBatch:
        """Build one batch.

        Args:
            histories: item ids, oldest first: a list with one sequence a user, or a tuple of two
                arrays (flat (N,), offsets (B + 1,)). Items older than the last `max_items` are not
                looked at.
            targets: (B,) item ids to be learnt; their titles and the end-of-turn token follow the
                prompt.
            seed: for a random policy: the same seed gives the same batch; None draws fresh entropy.
                A Generator is used, and advanced, as it is.

        Returns:
            PackedBatch on the CPU.

        Raises:
            TypeError: ids that are not integers.
            ValueError: no users, a user without items, an unknown item, a number of targets that is
                not the number of users, or a batch of more than 2**31 - 1 tokens.
        """
        flat, offsets = flatten(histories)
        items, lengths = newest(flat, offsets, self.max_items, self.step)
        position = self.catalogue.index(items)  # (N,)
        target = None if targets is None else self._targets(targets, users=len(lengths))
        return self._pack(position, History.of(lengths), target, np.random.default_rng(seed))

    def pack_targets(
        self,
        sequences: Histories,
        first: ArrayLike,
        last: ArrayLike,
        seed: int | np.random.Generator | None = None,
    ) -> PackedBatch:
        """The prompts of several targets of each user in one batch, each as `pack` makes it of what is before it.

        A random policy decides once for each item of a sequence, whichever prompts it is in.

        Args:
            sequences: whole sequences of users, as `pack` takes histories.
            first, last: the places in a user's sequence, from 0, of the first and the last target: (U,) integers, or
                one for all. A user with `last < first` has no targets.
            seed: as `pack` takes it.

        Returns:
            PackedBatch of all prompts, users in order, each user's oldest target first.

        Raises:
            TypeError, ValueError: as `pack`; a first target that has nothing before it; a last one beyond the
                sequence; other numbers of places than users; no targets at all.
        """
        flat, offsets = flatten(sequences)
        start, counts = target_places(np.diff(offsets), first, last)  # (U,)
        position, history, target = self._histories(flat, offsets, start, counts)
        return self._pack(position, history, target, np.random.default_rng(seed))

    def count_rows(
        self, sequences: Histories, first: ArrayLike, last: ArrayLike, apart: bool = False
    ) -> NDArray[np.int64]:
        """The rows of `pack_targets` of each user alone, without packing them.

        Args:
            sequences, first, last: as `pack_targets` takes them.
            apart: prompts that hold an item from different places of the sequence do not share it. With `Text`, no draw
                of `RandomItemPatches` or `Dropout`, which may differ between such places, has more rows.

        Returns:
            (U,) int64; 0 for a user without targets.

        Raises:
            TypeError, ValueError: as `pack_targets`; a policy that draws random numbers, so that rows differ from call
                to call.
        """
        flat, offsets = flatten(sequences)
        start, counts = target_places(np.diff(offsets), first, last)  # (U,)
        pieces = counts * (offsets[1:] - offsets[:-1] if self.max_items is None else self.max_items + self.step)
        # Some users at a time bound the memory.
        bounds = np.unique(np.searchsorted(np.cumsum(pieces), np.arange(0, pieces.sum(), _PIECES_AT_ONCE)))
        rows = np.zeros(len(counts), np.int64)
        for a, b in pairwise([*bounds.tolist(), len(counts)]):
            if counts[a:b].any():
                part = Ragged(flat, offsets).slice(a, b)
                rows[a:b] = self._count(part, start[a:b], counts[a:b], apart)
        return rows

    def _count(
        self, sequences: Ragged, start: NDArray[np.int64], counts: NDArray[np.int64], apart: bool
    ) -> NDArray[np.int64]:
        """(U,) rows of each user."""
        rng = np.random.default_rng(0)
        before = rng.bit_generator.state
        position, history, target = self._histories(*sequences, start, counts)
        found = units(self.policy, history, rng)
        if rng.bit_generator.state != before:
            raise ValueError(f"policy: expected a deterministic one, for rows to count, got {self.policy!r}")
        codes, first = self._pool.prompts(self._pool.codes(position[found.kept], found), found.lengths, target)
        row_at = to_offsets(self._pool.expand(codes, first[1:] - 1).rows)
        prompts = to_offsets(counts)  # (U + 1,) each user's first
        rows = np.diff(row_at[first[prompts]])
        if self.share:
            joined = codes >= self._pool.joins
            if apart:
                places, _ = self._pool.prompts(history.positions[found.kept], found.lengths, target)
                codes += 2 * self._pool.joins * places
            order, common = sort(codes, first, joined, groups=np.repeat(np.arange(len(counts)), counts))
            begin = first[:-1][order]
            rows -= np.diff(to_offsets(row_at[begin + common[:-1]] - row_at[begin])[prompts])
        return rows

    def _histories(
        self, flat: NDArray[np.int64], offsets: NDArray[np.integer], start: NDArray[np.int64], counts: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], History, NDArray[np.int64]]:
        """What `_pack` takes, of each user's targets: `counts` (U,) of them, the first at place `start` (U,)."""
        target = counting(offsets[:-1] + start, counts)  # (B,) places in `flat`
        lengths = how_many(counting(start, counts), self.max_items, self.step)  # (B,) items before each that are kept
        oldest = target - lengths
        places = counting(oldest, lengths)  # (N,) in `flat`
        some = counts > 0
        at = to_offsets(counts)
        begin = oldest[at[:-1][some]]  # a later target's oldest item is no older
        used = counting(begin, target[at[1:][some] - 1] + 1 - begin)
        position = np.zeros(len(flat), np.int64)
        position[used] = self.catalogue.index(flat[used])
        return position[places], History(lengths, places, len(flat)), position[target]

    def _pack(
        self,
        position: NDArray[np.int64],
        history: History,
        target: NDArray[np.int64] | None,
        rng: np.random.Generator,
    ) -> PackedBatch:
        """The batch of items at these positions in the catalogue, (N,), and so the targets, (B,)."""
        found = units(self.policy, history, rng)
        codes, first = self._pool.prompts(self._pool.codes(position[found.kept], found), found.lengths, target)
        leaves = np.arange(len(history.lengths))
        tree = self._tree(codes, first)
        if tree is not None:
            counts = tree.end - tree.begin
            codes = codes[counting(first[tree.source] + tree.begin, counts)]
            first, leaves = to_offsets(counts), tree.leaves  # (S + 1,) each segment's
        last = first[1:][leaves] - 1  # (B,) each prompt's last piece
        pieces = self._pool.expand(codes, None if target is None else last)

        token_at = to_offsets(pieces.tokens)  # (P + 1,) and so the next two
        item_at = to_offsets(pieces.items)
        row_at = to_offsets(pieces.rows)
        if token_at[-1] > _INT32_MAX:  # there are never more items or rows than tokens
            raise ValueError(
                f"histories: {len(leaves)} users make {token_at[-1]} tokens, more than 2**31 - 1; pack fewer at once"
            )
        ids = self._pool.tokens.take(counting(pieces.start, pieces.tokens))  # (T,)
        token_offsets = counting(token_at[:-1], pieces.items, dtype=np.int32)  # (I + 1,)
        item_offsets = counting(item_at[:-1], pieces.rows, dtype=np.int32)  # (R + 1,)
        cu_seqlens = row_at[first]  # (S + 1,)
        rows = np.diff(cu_seqlens)  # (S,)
        parts: dict[str, NDArray[Any]] = {"cu_seqlens": cu_seqlens.astype(np.int32), "leaves": leaves}
        if tree is None:
            seen = cu_seqlens[:-1]  # (S,) the row behind the last that a segment sees, and so the next line
            parts["position_ids"] = counting(0, rows)
        else:
            seen = row_at[first[tree.parent] + tree.visible]
            parts |= _segments(cu_seqlens, tree.parent, seen)
        if target is not None:
            tokens = pieces.tokens[last]  # (B,)
            at = counting(row_at[last], tokens)  # (N,) rows of the answers
            parts["targets"] = ids[counting(token_at[last], tokens)].astype(np.int64)  # (N,)
            parts["labels"] = np.full(cu_seqlens[-1], IGNORE, np.int64)  # (R,)
            parts["labels"][at] = parts["targets"]
            opening = np.where(last == first[leaves], seen[leaves], row_at[last]) - 1  # (B,) before the answer
            parts["supervised_rows"] = at - 1
            parts["supervised_rows"][to_offsets(tokens)[:-1]] = opening
        batch_ids = torch.from_numpy(ids)
        batch_offsets = torch.from_numpy(token_offsets), torch.from_numpy(item_offsets)
        return PackedBatch(
            ids=batch_ids,
            offsets=batch_offsets,
            max_seqlen=int(rows.max()),
            plan=_make_plan(batch_ids, batch_offsets) if self.plan else None,
            longest=0 if tree is None else int(parts["position_ids"].max()) + 1,
            levels=None if tree is None else levels_of(torch.from_numpy(tree.parent)),
            **cast(Any, {name: torch.from_numpy(array) for name, array in parts.items()}),
        )

    def _tree(self, codes: NDArray[np.int64], first: NDArray[np.int64]) -> Tree | None:
        """The segments of prompts whose first pieces these are, (B + 1,); None where they share nothing."""
        if not self.share or len(first) < 3:
            return None
        tree = grow(codes, first, codes >= self._pool.joins)
        return tree if (tree.parent >= 0).any() else None

    def _targets(self, targets: ArrayLike, users: int) -> NDArray[np.int64]:
        ids = integers("targets", targets)
        if len(ids) != users:
            raise ValueError(f"targets: got {len(ids)} for {users} histories, expected one a history")
        return self.catalogue.index(ids)


def check_step(step: int, max_items: int | None) -> None:
    """An error where the oldest items cannot leave `step` at a time."""
    if check_count("step", step, minimum=1) > 1 and max_items is None:
        raise ValueError(f"step: got {step} without max_items, so no item ever leaves; give max_items too")


def target_places(
    lengths: NDArray[np.int64], first: ArrayLike, last: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(U,) each user's first target, and how many there are."""
    given = {}
    for name, value in (("first", first), ("last", last)):
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        if array.dtype.kind not in "iu":
            raise TypeError(f"{name}: expected integers, got {array.dtype}")
        if array.shape not in ((), lengths.shape):
            raise ValueError(f"{name}: expected one place or {len(lengths)}, one a user, got shape {array.shape}")
        given[name] = np.broadcast_to(array.astype(np.int64), lengths.shape)
    start, end = given["first"], given["last"]
    some = end >= start
    for name, bad, expected in (
        ("first", some & (start < 1), "at least 1, for a target needs an item before it"),
        ("last", some & (end >= lengths), "a place in the user's sequence"),
    ):
        if bad.any():
            user = int(bad.argmax())
            raise ValueError(
                f"{name}: expected {expected}, got {given[name][user]} for user {user} of {lengths[user]} items"
            )
    if not some.any():
        raise ValueError("first, last: no user has a target, as last < first for all")
    return start, np.where(some, end + 1 - start, 0)


def _segments(
    cu_seqlens: NDArray[np.int64], parent: NDArray[np.int64], seen: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """What `PackedBatch` has of segments whose parents are seen up to the row before `seen`, (S,)."""
    visible = np.where(parent < 0, 0, seen - cu_seqlens[parent])
    begin, up = visible, parent  # (S,) the position of each segment's first row; an ancestor
    while (up >= 0).any():
        begin = begin + np.append(visible, 0)[up]
        up = np.append(parent, -1)[up]
    return {
        "parent": parent.astype(np.int32),
        "visible": visible.astype(np.int32),
        "position_ids": counting(begin, np.diff(cu_seqlens)),
    }


def _make_plan(ids: torch.Tensor, offsets: tuple[torch.Tensor, torch.Tensor]) -> Plan:
    from ..ops.compress import make_plan  # layout needs ops for nothing else

    return make_plan(ids, offsets)
