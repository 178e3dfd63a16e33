# SPDX-License-Identifier: Apache-2.0
"""`Recommender`: histories in, the catalogue's best titles out."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..hf.attach import attach
from ..hf.attention import is_ours
from ..hf.cache import Trunk
from ..layout import Packer
from ..layout.histories import Histories, flatten, integers
from ..layout.policies import check_count
from . import files
from .beam import EarlyStopping, Found, beam
from .diverse import diverse
from .exact import exact
from .head import Head
from .reader import NORMALIZE, Normalize, Reader, closed_nodes
from .recommendations import Recommendations
from .trie import Trie
from .whole import log_probs

Method = Literal["beam", "exact", "diverse"]


class _Batch(NamedTuple):
    """Some users: their items and offsets."""

    flat: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def part(self, first: int, last: int) -> _Batch:
        cut = self.offsets[first : last + 1]
        return _Batch(self.flat[cut[0] : cut[-1]], cut - cut[0])

    def __len__(self) -> int:
        return len(self.offsets) - 1


class Recommender:
    """Decodes over a catalogue with a causal language model. An answer is always a title of the catalogue.

    The model is used as it is at each call: in evaluation mode, attached with `patchrec_fast.attach` where it is not
    yet, and left as it was found. A prompt is read once for all branches, and the part of the prompts before the
    history, the same for all users, once a call (`patchrec_fast.hf.cache`).

    Attributes:
        model, packer: as given.
        trie: of the packer's catalogue, on the CPU.
    """

    def __init__(self, model: Any, packer: Packer, trie: Trie | None = None) -> None:
        """Set up.

        Args:
            model: a causal language model of transformers, on one device.
            packer: builds the prompts; its catalogue is what can be recommended.
            trie: of that catalogue, where one is kept (`recommend.files`); None builds it.

        Raises:
            TypeError: a model without output embeddings.
            ValueError: a model with too few embeddings, or with logits that are not those of its output embedding; a
                trie of another catalogue.
        """
        end = packer.prompt.end_of_turn
        if trie is None:
            trie = Trie.from_catalogue(packer.catalogue, end)
        else:
            files.check(trie, packer.catalogue, end)
        self.model, self.packer, self.trie = model, packer, trie
        self._head = Head(model)
        if int(trie.token.max()) >= self._head.size:
            raise ValueError(
                f"model: its {self._head.size} logits do not cover the titles' token {int(trie.token.max())}; "
                "call model.resize_token_embeddings(prompt.num_embeddings)"
            )

    def recommend(
        self,
        histories: Histories,
        k: int = 20,
        method: Method = "beam",
        *,
        normalize: Normalize = "vocab",
        exclude_seen: bool = False,
        beams: int | None = None,
        length_penalty: float | None = None,
        early_stopping: EarlyStopping = False,
        diversity_penalty: float = 0.8,
        batch_size: int = 16,
    ) -> Recommendations:
        """The k best titles of each user.

        Args:
            histories: item ids, oldest first, as `Packer.pack` takes them.
            k: how many titles; where the catalogue has fewer, all.
            method: "beam": beam search, transformers' own result. "exact": the true best titles. "diverse": the
                decoder of the paper's released code, which may give a title twice.
            normalize: a token's probability is its share among the whole vocabulary ("vocab"), among the tokens that
                titles use ("catalogue", cheaper), or among the tokens that may follow ("children": the titles'
                probabilities add up to 1).
            exclude_seen: leave out titles that the user's history holds, all of it as given, and of items that share
                a title, all of them.
            beams: for "beam": how many run side by side, at least k; None is k.
            length_penalty: titles are ordered by log-probability over `length ** length_penalty`. None is 0 for
                "beam", and for "diverse" the paper's 1; "exact" takes none.
            early_stopping: for "beam", as `recommend.beam.beam` has it.
            diversity_penalty: for "diverse".
            batch_size: users decoded at once. A batch that does not fit the GPU is halved, with a warning.

        Raises:
            TypeError: ids that are not integers.
            ValueError: an empty history, an unknown item, a k, batch size or option out of range.
        """
        check_count("k", k, minimum=1)
        if method not in ("beam", "exact", "diverse"):
            raise ValueError(f"method must be 'beam', 'exact' or 'diverse', got {method!r}")
        if early_stopping not in (False, True, "never"):
            raise ValueError(f"early_stopping must be False, True or 'never', got {early_stopping!r}")
        if method == "exact" and length_penalty:
            raise ValueError(f"length_penalty: method='exact' orders by log-probability, got {length_penalty}")
        check_count("beams", k if beams is None else beams, minimum=k)
        if method != "beam" and beams is not None:
            raise ValueError(f"beams: only method='beam' has them, got {beams} for {method!r}")

        def decode(reader: Reader) -> Found:
            if method == "exact":
                return exact(reader, k)
            if method == "diverse":
                return diverse(reader, k, diversity_penalty, 1.0 if length_penalty is None else length_penalty)
            return beam(reader, k, beams or k, length_penalty or 0.0, early_stopping)

        run = _Run(self, normalize, exclude_seen)
        parts = run.decode(_Batch(*flatten(histories)), decode, batch_size)
        found = Found(*(torch.cat(column) for column in zip(*(each for each, _ in parts), strict=True)))
        return Recommendations(
            items=self.trie.first_items(found.leaf).numpy(),
            log_probs=found.log_prob.numpy(),
            scores=found.score.numpy(),
            scored=torch.cat([asked for _, asked in parts]).numpy(),
            rows=run.rows,
            seconds=run.seconds,
            catalogue=self.packer.catalogue,
        )

    def scores(
        self, histories: Histories, *, normalize: Normalize = "vocab", batch_size: int = 4
    ) -> NDArray[np.float32]:
        """Every title's log-probability, by brute force: one row of the model and of its head for each inner node.

        Returns:
            (B, I) float32, items in the order of the catalogue.

        Raises:
            TypeError, ValueError: as `recommend`.
        """
        leaf = torch.from_numpy(self.trie.leaf_of(self.packer.catalogue.item_ids))

        def decode(reader: Reader) -> tuple[Tensor]:
            return (log_probs(reader)[:, leaf.to(reader.trie.token.device)],)

        parts = _Run(self, normalize).decode(_Batch(*flatten(histories)), decode, batch_size)
        return torch.cat([each[0] for each, _ in parts]).numpy()

    def rank(self, histories: Histories, items: ArrayLike, **options: Any) -> NDArray[np.int64]:
        """The rank of an item's title among all titles, by log-probability, 1 for the best: HR and NDCG at any K.

        Titles with equal log-probabilities all get the last of their ranks, as in `evaluate.metrics`.

        Args:
            items: (B,) item ids, one for each history.
            options: as `scores`.

        Returns:
            (B,) int64.

        Raises:
            TypeError, ValueError: as `recommend`; another number of items than of histories.
        """
        wanted = integers("items", items)
        batch = _Batch(*flatten(histories))
        if len(wanted) != len(batch):
            raise ValueError(f"items: got {len(wanted)} for {len(batch)} histories, expected one a history")
        place = self.packer.catalogue.index(wanted)
        _, one_each = np.unique(self.trie.leaf_of(self.packer.catalogue.item_ids), return_index=True)
        table = self.scores(tuple(batch), **options)
        return (table[:, one_each] >= table[np.arange(len(table)), place][:, None]).sum(1)


class _Run:
    """One call: its options, and what it cost."""

    def __init__(self, rec: Recommender, normalize: Normalize, exclude_seen: bool = False) -> None:
        if normalize not in NORMALIZE:
            raise ValueError(f"normalize must be one of {', '.join(map(repr, NORMALIZE))}, got {normalize!r}")
        self.rec, self.normalize, self.exclude_seen = rec, normalize, exclude_seen
        self.device = next(rec.model.parameters()).device
        self.trie = rec.trie.to(self.device)
        self.trunk: Trunk | None = None
        self.rows = 0
        self.seconds = {"pack": 0.0, "prompt": 0.0, "decode": 0.0}

    @torch.no_grad()
    def decode(
        self, users: _Batch, decode: Callable[[Reader], tuple[Tensor, ...]], batch_size: int
    ) -> list[tuple[tuple[Tensor, ...], Tensor]]:
        """What `decode` makes of each batch and what it asked, on the CPU, users in order."""
        check_count("batch_size", batch_size, minimum=1)
        parts = []
        with _ready(self.rec.model):
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

    def _attempt(
        self, batch: _Batch, decode: Callable[[Reader], tuple[Tensor, ...]]
    ) -> tuple[tuple[Tensor, ...], Tensor] | None:
        """None where memory ran out and there is more than one user."""
        try:
            return self._one(batch, decode)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        gc.collect()  # the failed attempt's tensors may hang in reference cycles
        torch.cuda.empty_cache()
        warnings.warn(f"{len(batch)} users at once do not fit into memory; halving the batch", stacklevel=5)
        return None

    def _one(self, batch: _Batch, decode: Callable[[Reader], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], Tensor]:
        with self._part("pack"):
            packed = self.rec.packer.pack(tuple(batch), seed=0, prefixes=int(self.trunk is None))
            closed = self._seen(batch) if self.exclude_seen else None
        with self._part("prompt"):
            reader = Reader(self.rec.model, self.rec._head, self.trie, packed, self.normalize, closed, self.trunk)
            if self.trunk is None and not _rotates_by_length(self.rec.model):
                self.trunk = reader.trunk(len(self.rec.packer.prompt.prefix))
        with self._part("decode"):
            made = decode(reader)
        self.rows += reader.rows
        return tuple(each.cpu() for each in made), reader.asked.cpu()

    def _seen(self, batch: _Batch) -> Tensor | None:
        """The nodes under which a user has seen all."""
        user = np.repeat(np.arange(len(batch)), np.diff(batch.offsets))
        seen = np.unique(np.stack([user, batch.flat]), axis=1)  # an item watched twice is one
        pair, count = np.unique(np.stack([seen[0], self.rec.trie.leaf_of(seen[1])]), axis=1, return_counts=True)
        user, leaf = torch.from_numpy(pair).to(self.device)
        everything = self.trie.item_first[leaf + 1] - self.trie.item_first[leaf]
        whole = torch.from_numpy(count).to(self.device) == everything
        return closed_nodes(self.trie, user[whole], leaf[whole])

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        """Times a part; on CUDA as a named range, and with the device's work done at its end."""
        cuda = self.device.type == "cuda"
        began = time.perf_counter()
        if cuda:
            torch.cuda.nvtx.range_push(f"patchrec_fast {name}")
        try:
            yield
            if cuda:
                torch.cuda.synchronize(self.device)
        finally:
            if cuda:
                torch.cuda.nvtx.range_pop()
            self.seconds[name] += time.perf_counter() - began


def _rotates_by_length(model: Any) -> bool:
    """Whether rotary embeddings depend on the longest position of a call: then each batch needs keys of its own."""
    kinds = (str(getattr(module, "rope_type", "")) for module in model.modules())  # one, or one a type of layers
    return any("dynamic" in kind or "longrope" in kind for kind in kinds)


@contextmanager
def _ready(model: Any) -> Iterator[None]:
    """The model attached and in evaluation mode; afterwards as it was."""
    handle = None if is_ours(model.config._attn_implementation) else attach(model)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
        if handle is not None:
            handle.detach()
