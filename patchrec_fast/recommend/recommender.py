# SPDX-License-Identifier: Apache-2.0
"""`Recommender`: histories in, the catalogue's best titles out."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..hf.attach import check_decoding
from ..layout import Packer
from ..layout.histories import Histories, flatten, integers
from ..layout.policies import check_count
from . import files
from .beam import EarlyStopping, Found, Rules, beam
from .diverse import diverse
from .exact import exact
from .head import Head
from .questions import Normalize
from .reader import Reader
from .recommendations import Recommendations
from .run import Run, Users
from .trie import Trie
from .whole import log_probs

Method = Literal["beam", "exact", "diverse"]


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
            ValueError: a model with too few embeddings, with logits that are not those of its output embedding, or that
                decodes otherwise than it reads (`patchrec_fast.hf.check`); a trie of another catalogue.
        """
        end = packer.prompt.end_of_turn
        if trie is None:
            trie = Trie.from_catalogue(packer.catalogue, end)
        else:
            files.check(trie, packer.catalogue, end)
        self.model, self.packer, self.trie = model, packer, trie
        self._head = Head(model)
        check_decoding(model)
        self._runs: dict[Hashable, Run] | None = None  # inside `unchanged`
        if int(trie.token.max()) >= self._head.size:
            raise ValueError(
                f"model: its {self._head.size} logits do not cover the titles' token {int(trie.token.max())}; "
                "call model.resize_token_embeddings(prompt.num_embeddings)"
            )

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Inside, the model does not change, so what one call prepares serves the next: the beginning that all prompts
        share, the titles' part of the head, CUDA graphs. Whoever changes it inside gets answers of both models."""
        outer, self._runs = self._runs, {}
        try:
            yield
        finally:
            self._runs = outer

    def _run(
        self, normalize: Normalize, exclude_seen: bool = False, graphed: Rules | None = None, required: bool = False
    ) -> Run:
        """A run with these options, where inside `unchanged` the one that there is."""
        key = normalize, exclude_seen, graphed, required
        run = None if self._runs is None else self._runs.get(key)
        if run is None:
            run = Run(self.model, self._head, self.packer, self.trie, normalize, exclude_seen)
            if graphed is not None:
                run.fix(graphed, required)
            if self._runs is not None:
                self._runs[key] = run
        return run

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
        cuda_graphs: bool | None = None,
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
            cuda_graphs: for "beam" on a GPU: run the steps of the search as a CUDA graph, which waits for nothing
                (`recommend.fixed`); the answers are the same. None does so where it can, True or raises.

        Raises:
            TypeError: ids that are not integers.
            ValueError: an empty history, an unknown item, a k, batch size or option out of range.
            RuntimeError: `cuda_graphs=True` where they cannot serve, and why.
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
        if method != "beam" and cuda_graphs:
            raise ValueError(f"cuda_graphs: only method='beam' has them, got {method!r}")
        rules = Rules(k, beams or k, length_penalty or 0.0, early_stopping)

        def decode(reader: Reader) -> Found:
            if method == "exact":
                return exact(reader, k)
            if method == "diverse":
                return diverse(reader, k, diversity_penalty, 1.0 if length_penalty is None else length_penalty)
            return beam(reader, rules)

        graphed = method == "beam" and cuda_graphs is not False
        run = self._run(normalize, exclude_seen, rules if graphed else None, cuda_graphs is True)
        parts = run.decode(Users(*flatten(histories)), decode, batch_size)
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

        parts = Run(self.model, self._head, self.packer, self.trie, normalize).decode(
            Users(*flatten(histories)), decode, batch_size
        )
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
        batch = Users(*flatten(histories))
        if len(wanted) != len(batch):
            raise ValueError(f"items: got {len(wanted)} for {len(batch)} histories, expected one a history")
        place = self.packer.catalogue.index(wanted)
        _, one_each = np.unique(self.trie.leaf_of(self.packer.catalogue.item_ids), return_index=True)
        table = self.scores(tuple(batch), **options)
        return (table[:, one_each] >= table[np.arange(len(table)), place][:, None]).sum(1)
