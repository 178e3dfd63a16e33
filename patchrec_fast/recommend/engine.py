# SPDX-License-Identifier: Apache-2.0
"""A call of `Recommender`: users batch by batch, each packed, its prompts read, its answers searched."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import partial
from itertools import pairwise
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._check import check_count
from .._ranges import named
from ..hf.decode_cache import DynamicCache, Parent, StaticCache
from ..hf.kv_cache import Entry, KeyValues, KVCache
from ..layout import PackedBatch, Packer
from ..layout.rows import PromptRows, prompt_rows, without
from ..ops.backends import why_not
from ..ragged import Ragged
from .exclusion import Exclusion
from .lm_head import LMHead
from .modes import Autocast, called, ready
from .scorer import NORMALIZE, Normalize, TokenScorer
from .search.beam import BeamConfig
from .search.cuda_graph import CudaGraphs
from .search.static_beam import StaticBeamSearch
from .state import DecodeState, PromptState
from .trie import Trie

_ROOM = 1.25  # of what a batch needs, so that the next, of other histories, most often fits

_EMPTY, _SMALL = 4, 4096  # times the rows of beams that can live; rows a user that are no matter

PARTS = ("pack", "prompt", "decode")
"""Of a call's wall time."""

Answers = tuple[Tensor, ...]
"""What a search gives, (B, ...) each."""


class Users(NamedTuple):
    """Some users: their histories, and the caller's ids of them."""

    histories: Ragged
    ids: list[Hashable] | None = None

    def part(self, first: int, last: int) -> Users:
        return Users(self.histories.slice(first, last), self.ids and self.ids[first:last])

    @property
    def number(self) -> int:
        return len(self.histories.offsets) - 1


class Run:
    """What batches share, and what the last call cost.

    Attributes:
        rows: of all prompts.
        rows_read: those of them that the model has read.
        seconds: wall time by part.
    """

    def __init__(
        self,
        model: Any,
        head: LMHead,
        packer: Packer,
        trie: Trie,
        normalize: Normalize,
        closes: bool = False,
        autocast: Autocast = None,
        cache: KVCache | None = None,
    ) -> None:
        """Set up; `trie` is on the CPU, `closes` says that calls have exclusions, `autocast` is for the calls of the
        model, `cache` of users who have ids.

        Raises:
            ValueError: a `normalize` that is none.
        """
        if normalize not in NORMALIZE:
            raise ValueError(f"normalize must be one of {', '.join(map(repr, NORMALIZE))}, got {normalize!r}")
        self.rows, self.rows_read, self.seconds = 0, 0, dict.fromkeys(PARTS, 0.0)
        self._model, self._head, self._host_trie = model, head, trie
        self._packer = copy(packer)
        self._packer.share = self._packer.plan = False
        self._device = next(model.parameters()).device
        self._forward, self._autocast = called(model, autocast), autocast
        self._reuses = not _rotates_by_length(model)
        self._cache = cache if self._reuses else None
        self._trie = trie.to(self._device)
        self._scorer = TokenScorer(head, self._trie, normalize)
        self._closes = closes
        self._exclusion: Exclusion | None = None  # of the call
        self._prefix: KeyValues | None = None  # of the rows before the history
        self._config: BeamConfig | None = None  # of a search in calls of few shapes
        self._graphs_required = False
        self._static: StaticBeamSearch | None = None

    def use_static_shapes(self, config: BeamConfig, required: bool) -> None:
        """Beams are searched in calls of few shapes, if they can be.

        Raises:
            RuntimeError: required, and they cannot.
        """
        reason = _why_not_static(self._model, self._device) or _mostly_empty(self._host_trie, config.beams)
        if reason is None:
            self._config, self._graphs_required = config, required
        elif required:
            raise RuntimeError(f"cuda_graphs=True cannot serve this call: {reason}")

    def decode(
        self,
        users: Users,
        decode: Callable[[DecodeState], Answers],
        batch_size: int,
        exclusion: Exclusion | None = None,
    ) -> list[tuple[Answers, Tensor]]:
        """What `decode` makes of each batch and how many nodes it scored, on the CPU, users in order.

        For who has the model alone, in `recommend.modes.own_modes`.
        """
        check_count("batch_size", batch_size, minimum=1)
        self.rows, self.rows_read, self.seconds = 0, 0, dict.fromkeys(PARTS, 0.0)
        parts = []
        self._exclusion = exclusion
        if self._closes:
            self._make_closable(min(batch_size, users.number))
        with ready(self._model):
            waiting = [users.part(a, min(a + batch_size, users.number)) for a in range(0, users.number, batch_size)][
                ::-1
            ]
            while waiting:
                batch = waiting.pop()
                made = self._attempt(batch, decode)
                if made is None:
                    half = batch.number // 2
                    waiting += [batch.part(half, batch.number), batch.part(0, half)]
                else:
                    parts.append(made)
        return parts

    def _attempt(self, batch: Users, decode: Callable[[DecodeState], Answers]) -> tuple[Answers, Tensor] | None:
        """None where memory ran out and there is more than one user."""
        try:
            return self._one(batch, decode)
        except torch.OutOfMemoryError:
            if batch.number == 1:
                raise
        self._static = None  # made for as many users
        gc.collect()  # the failed attempt's tensors may hang in reference cycles
        torch.cuda.empty_cache()
        warnings.warn(f"{batch.number} users at once do not fit into memory; halving the batch", stacklevel=5)
        return None

    def _one(self, batch: Users, decode: Callable[[DecodeState], Answers]) -> tuple[Answers, Tensor]:
        with self._part("pack"):
            packed = self._packer.pack(batch.histories, seed=0)
            rows = prompt_rows(packed)
            lengths, parents = [len(each.item_offsets) - 1 for each in rows], self._parents(batch, rows)
            packed = without(packed, [parent.visible for parent in parents])
            self._close(batch)
        with self._part("prompt"):
            prompts, search = self._read(packed, lengths, parents, decode)
            self._store(batch, rows, prompts.cache)
        with self._part("decode"):
            made = search()
        self.rows += prompts.rows
        self.rows_read += (read := len(packed.position_ids))
        if self._cache is not None and batch.ids is not None:
            self._cache.rows_read += read
            self._cache.rows_reused += prompts.rows - read
        return tuple(each.cpu() for each in made), prompts.num_scored.cpu()

    def _parents(self, batch: Users, prompts: list[PromptRows]) -> list[Parent]:
        """The rows that each prompt begins with and that need not be read: all but one, at most."""
        prefix, found = len(self._packer.prompt.prefix), [Parent(0, None)] * batch.number
        for place, prompt in enumerate(prompts):
            entry = None
            if self._cache is not None and batch.ids is not None:
                entry = self._cache.get((batch.ids[place], self._autocast), self._device)
            if entry is not None:
                visible = min(prompt.common(entry.prompt), len(prompt.item_offsets) - 2)
                found[place] = Parent(visible, entry.rows) if visible >= prefix else found[place]
        if self._prefix is None:
            rows = next((parent.rows for parent in found if parent.rows is not None), None)
            self._prefix = None if rows is None else rows.copy(0, prefix)
        if self._prefix is not None:
            shared = Parent(prefix, self._prefix)
            return [shared if parent.rows is None else parent for parent in found]
        return [found[0], *[Parent(prefix, None)] * (batch.number - 1)]

    def _store(self, batch: Users, prompts: list[PromptRows], cache: DynamicCache) -> None:
        """What the next batch and the next call need not read; copies, made before an entry is replaced."""
        if not self._reuses:
            return
        if self._prefix is None:
            self._prefix = cache.prompt(0, len(self._packer.prompt.prefix))
        if self._cache is not None and batch.ids is not None:
            for place, prompt in enumerate(prompts):
                self._cache.put((batch.ids[place], self._autocast), Entry(prompt, cache.prompt(place)))

    def _read(
        self,
        packed: PackedBatch,
        lengths: list[int],
        parents: list[Parent],
        decode: Callable[[DecodeState], Answers],
    ) -> tuple[PromptState, Callable[[], Answers]]:
        """The prompts, read, and the search that waits."""
        common = self._forward, self._head, self._trie, packed
        if self._config is None:
            state = DecodeState(*common, DynamicCache(lengths, self._device, parents), self._scorer)
            return state, partial(decode, state)
        static = self._with_room(self._config, lengths)
        static.cache.reset(lengths, parents)
        prompts = PromptState(*common, static.cache, self._scorer)
        return prompts, partial(static.search, prompts)

    def _with_room(self, config: BeamConfig, lengths: list[int]) -> StaticBeamSearch:
        """A search with room for prompts of these rows: the last batch's where it has."""
        if self._static is None or not self._static.cache.fits(lengths):
            needed = (len(lengths), ceil(_ROOM * sum(lengths)), ceil(_ROOM * max(lengths)))
            had = (0, 0, 0) if self._static is None else self._static.cache.capacity
            users, rows, longest = map(max, needed, had)
            self._static = None  # its memory, before there is another's
            tree_rows = StaticBeamSearch.tree_rows(self._trie, users, config.beams)
            cache = StaticCache(users, rows, longest, tree_rows, self._device)
            graphs = CudaGraphs(self._device, required=self._graphs_required)
            self._static = StaticBeamSearch(self._forward, self._head, self._trie, self._scorer, config, cache, graphs)
        return self._static

    def _make_closable(self, users: int) -> None:
        """So many users can have closed nodes; in the tensor that a graph has seen, where that is large enough."""
        if self._scorer.closed is None or len(self._scorer.closed) < users:
            self._scorer.closed = torch.zeros((users, len(self._trie)), dtype=torch.bool, device=self._device)
            self._static = None

    def _close(self, batch: Users) -> None:
        """Closes the nodes under which a user has nothing left."""
        if self._scorer.closed is not None and self._exclusion is not None:
            self._scorer.closed[: batch.number] = self._exclusion.closed(batch.histories, self._trie)

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


def _why_not_static(model: Any, device: torch.device) -> str | None:
    """Why calls of few shapes do not serve a model; None where they do."""
    if device.type != "cuda":
        return f"the model is on {device}, expected a CUDA device"
    if _rotates_by_length(model):
        return "its rotary embeddings depend on the longest position of a call"
    return why_not("triton", device.type, next(model.parameters()).dtype)


def _mostly_empty(trie: Trie, beams: int) -> str | None:
    """Why calls of few shapes would have room for more than can live: it is of the longest title, in each beam."""
    rows = (trie.depth - 1) * beams
    if rows <= _SMALL:
        return None
    inner = [int((~trie.is_leaf[a:b]).sum()) for a, b in pairwise(trie.levels[1:-1])]  # by depth
    if rows <= _EMPTY * sum(min(beams, nodes) for nodes in inner):
        return None
    return f"its search would keep {rows} rows a user for the longest title, of {trie.depth} tokens, most of them empty"


def _rotates_by_length(model: Any) -> bool:
    """Whether rotary embeddings depend on the longest position of a call: then each batch needs keys of its own."""
    kinds = (str(getattr(module, "rope_type", "")) for module in model.modules())  # one, or one a type of layers
    return any("dynamic" in kind or "longrope" in kind for kind in kinds)
