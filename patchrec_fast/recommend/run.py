# SPDX-License-Identifier: Apache-2.0
"""A call of `Recommender`: users batch by batch, each packed, its prompts read, its answers searched."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._backends import why_not
from .._ranges import named
from ..hf.cache import TreeCache, Trunk
from ..hf.fixed_tree import FixedTree
from ..layout import PackedBatch, Packer
from ..layout.policies import check_count
from ..ragged import Ragged
from .beam import Rules
from .fixed import FixedBeam
from .graph import Replayed
from .head import Head
from .model import Autocast, called, ready
from .questions import NORMALIZE, Normalize, Questions, closed_nodes
from .reader import Prompts, Reader, prompt_rows
from .trie import Trie

_ROOM = 1.25  # of what a batch needs, so that the next, of other histories, most often fits

_EMPTY, _SMALL = 4, 4096  # times the rows of beams that can live; rows a user that are no matter

PARTS = ("pack", "prompt", "decode")
"""Of a call's wall time."""

Answers = tuple[Tensor, ...]
"""What a search gives, (B, ...) each."""


class Users(NamedTuple):
    """Some users: their items and offsets."""

    flat: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def part(self, first: int, last: int) -> Users:
        return Users(*Ragged(*self).slice(first, last))

    def __len__(self) -> int:
        return len(self.offsets) - 1


class Run:
    """What batches share, and what the last call cost.

    Attributes:
        rows: of all prompts.
        seconds: wall time by part.
    """

    def __init__(
        self,
        model: Any,
        head: Head,
        packer: Packer,
        trie: Trie,
        normalize: Normalize,
        exclude_seen: bool = False,
        autocast: Autocast = None,
    ) -> None:
        """Set up; `trie` is on the CPU, `autocast` is for the calls of the model.

        Raises:
            ValueError: a `normalize` that is none.
        """
        if normalize not in NORMALIZE:
            raise ValueError(f"normalize must be one of {', '.join(map(repr, NORMALIZE))}, got {normalize!r}")
        self.rows, self.seconds = 0, dict.fromkeys(PARTS, 0.0)
        self._model, self._head, self._packer, self._host_trie = model, head, packer, trie
        self._device = next(model.parameters()).device
        self._forward = called(model, autocast)
        self._keeps_trunk = not _rotates_by_length(model)
        self._trie = trie.to(self._device)
        self._questions = Questions(head, self._trie, normalize)
        self._exclude_seen = exclude_seen
        self._trunk: Trunk | None = None
        self._rules: Rules | None = None  # of a search in steps of one shape
        self._graphs_required = False
        self._fixed: FixedBeam | None = None

    def fix(self, rules: Rules, required: bool) -> None:
        """Beams are searched in steps of one shape, if they can be.

        Raises:
            RuntimeError: required, and they cannot.
        """
        reason = _why_not_fixed(self._model, self._device) or _mostly_empty(self._host_trie, rules.beams)
        if reason is None:
            self._rules, self._graphs_required = rules, required
        elif required:
            raise RuntimeError(f"cuda_graphs=True cannot serve this call: {reason}")

    def decode(
        self, users: Users, decode: Callable[[Reader], Answers], batch_size: int
    ) -> list[tuple[Answers, Tensor]]:
        """What `decode` makes of each batch and how much it asked, on the CPU, users in order.

        For who has the model alone, in `recommend.model.own_modes`.
        """
        check_count("batch_size", batch_size, minimum=1)
        self.rows, self.seconds = 0, dict.fromkeys(PARTS, 0.0)
        parts = []
        if self._exclude_seen:
            self._make_closable(min(batch_size, len(users)))
        with ready(self._model):
            waiting = [users.part(a, min(a + batch_size, len(users))) for a in range(0, len(users), batch_size)][::-1]
            while waiting:
                batch = waiting.pop()
                made = self._attempt(batch, decode)
                if made is None:
                    half = len(batch) // 2
                    waiting += [batch.part(half, len(batch)), batch.part(0, half)]
                else:
                    parts.append(made)
        return parts

    def _attempt(self, batch: Users, decode: Callable[[Reader], Answers]) -> tuple[Answers, Tensor] | None:
        """None where memory ran out and there is more than one user."""
        try:
            return self._one(batch, decode)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        self._fixed = None  # made for as many users
        gc.collect()  # the failed attempt's tensors may hang in reference cycles
        torch.cuda.empty_cache()
        warnings.warn(f"{len(batch)} users at once do not fit into memory; halving the batch", stacklevel=5)
        return None

    def _one(self, batch: Users, decode: Callable[[Reader], Answers]) -> tuple[Answers, Tensor]:
        with self._part("pack"):
            packed = self._packer.pack(tuple(batch), seed=0, prefixes=int(self._trunk is None))
            self._close(batch)
        with self._part("prompt"):
            prompts, search = self._read(packed, decode)
        with self._part("decode"):
            made = search()
        self.rows += prompts.rows
        return tuple(each.cpu() for each in made), prompts.asked.cpu()

    def _read(self, packed: PackedBatch, decode: Callable[[Reader], Answers]) -> tuple[Prompts, Callable[[], Answers]]:
        """The prompts, read, and the search that waits."""
        lengths, left_out = (rows.tolist() for rows in prompt_rows(packed))
        known = self._forward, self._head, self._trie, packed
        prompts: Prompts
        search: Callable[[], Answers]
        if self._rules is None:
            tree = TreeCache(lengths, left_out, self._trunk)
            prompts = reader = Reader(*known, tree, self._questions)
            search = partial(decode, reader)
        else:
            fixed = self._with_room(self._rules, lengths)
            fixed.tree.renew(lengths, left_out, self._trunk)
            prompts = Prompts(*known, fixed.tree, self._questions)
            search = partial(fixed.search, prompts)
        if self._trunk is None and self._keeps_trunk:
            self._trunk = prompts.tree.trunk(len(self._packer.prompt.prefix))
        return prompts, search

    def _with_room(self, rules: Rules, lengths: list[int]) -> FixedBeam:
        """A search with room for prompts of these rows: the last batch's where it has."""
        if self._fixed is None or not self._fixed.tree.fits(lengths):
            needed = (len(lengths), ceil(_ROOM * sum(lengths)), ceil(_ROOM * max(lengths)))
            had = (0, 0, 0) if self._fixed is None else self._fixed.tree.room
            users, rows, longest = map(max, needed, had)
            self._fixed = None  # its memory, before there is another's
            tree = FixedTree(users, rules.beams, self._trie.depth - 1, rows, longest, self._device)
            step = Replayed(self._device, required=self._graphs_required)
            self._fixed = FixedBeam(self._forward, self._head, self._trie, self._questions, rules, tree, step)
        return self._fixed

    def _make_closable(self, users: int) -> None:
        """So many users can have closed nodes; in the tensor that a graph has seen, where that is large enough."""
        if self._questions.closed is None or len(self._questions.closed) < users:
            self._questions.closed = torch.zeros((users, len(self._trie)), dtype=torch.bool, device=self._device)
            self._fixed = None

    def _close(self, batch: Users) -> None:
        """Closes the nodes under which a user has seen all."""
        if self._questions.closed is None:
            return
        user = np.repeat(np.arange(len(batch)), np.diff(batch.offsets))
        seen = np.unique(np.stack([user, batch.flat]), axis=1)  # an item watched twice is one
        pair, count = np.unique(np.stack([seen[0], self._host_trie.leaf_of(seen[1])]), axis=1, return_counts=True)
        user, leaf = torch.from_numpy(pair).to(self._device)
        everything = self._trie.item_first[leaf + 1] - self._trie.item_first[leaf]
        whole = torch.from_numpy(count).to(self._device) == everything
        self._questions.closed[: len(batch)] = closed_nodes(self._trie, len(batch), user[whole], leaf[whole])

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        """Times a part; on CUDA as a named range, and with the device's work done at its end."""
        began = time.perf_counter()
        try:
            with named(name, self._device):
                yield
                if self._device.type == "cuda":
                    torch.cuda.synchronize(self._device)
        finally:
            self.seconds[name] += time.perf_counter() - began


def _why_not_fixed(model: Any, device: torch.device) -> str | None:
    """Why steps of one shape do not serve a model; None where they do."""
    if device.type != "cuda":
        return f"the model is on {device}, expected a CUDA device"
    if _rotates_by_length(model):
        return "its rotary embeddings depend on the longest position of a call"
    return why_not("triton", device.type, next(model.parameters()).dtype)


def _mostly_empty(trie: Trie, beams: int) -> str | None:
    """Why steps of one shape would have room for more than can live: it is of the longest title, in each beam."""
    rows = (trie.depth - 1) * beams
    if rows <= _SMALL:
        return None
    inner = [int((~trie.is_leaf[a:b]).sum()) for a, b in pairwise(trie.levels[1:-1])]  # by depth
    if rows <= _EMPTY * sum(min(beams, nodes) for nodes in inner):
        return None
    return f"its steps would keep {rows} rows a user for the longest title, of {trie.depth} tokens, most of them empty"


def _rotates_by_length(model: Any) -> bool:
    """Whether rotary embeddings depend on the longest position of a call: then each batch needs keys of its own."""
    kinds = (str(getattr(module, "rope_type", "")) for module in model.modules())  # one, or one a type of layers
    return any("dynamic" in kind or "longrope" in kind for kind in kinds)
