# SPDX-License-Identifier: Apache-2.0
"""`Recommender`: histories in, the catalogue's best titles out."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .._check import check_count, check_number
from ..hf.attach import check_decoding
from ..hf.kv_cache import KVCache
from ..hf.lock import exclusive
from ..hf.modules import unwrapped
from ..layout import Catalogue, Packer
from ..layout.histories import Histories, flatten, integers
from ..models.fingerprint import of_model, of_packer
from ..ragged import Ragged
from . import trie_files
from .engine import Run, Users
from .exclusion import Exclusion, Ids
from .lm_head import LMHead
from .modes import fingerprint, own_modes
from .recommendations import Recommendations, default_beams, most_answers
from .scorer import Normalize
from .search.beam import BeamConfig, EarlyStopping, Hypotheses, beam
from .search.diverse import diverse
from .search.exact import exact
from .search.exhaustive import score_all_titles
from .state import DecodeState
from .trie import Trie

Method = Literal["beam", "exact", "diverse"]

_MOST_PENALTY = 1000.0  # beside more, float32 has lost the log-probabilities
_POWER = 30.0  # digits of `length ** length_penalty`: scores stay far from float32's bounds


class Recommender:
    """Decodes over a catalogue with a causal language model. An answer is always a title of the catalogue.

    The model is used as it is at each call: in evaluation mode, attached with `patchrec_fast.attach` where it is not
    yet, and left as it was found. A prompt is read once for all branches, and the part of the prompts before the
    history, the same for all users, once a call (`patchrec_fast.hf.decode_cache`); inside `engine`, less than that.

    Threads may call one recommender, or several of one model: their calls take turns (`patchrec_fast.hf.lock`). Other
    calls of the model, and its training, are not in their turn: a call here finds the model in training mode, or
    without `attach`, and changes that until it ends. So who calls the model beside attaches it before, and trains it
    not at the same time.

    Attributes:
        model, packer: as given.
        trie: of the packer's catalogue, on the CPU.
    """

    def __init__(self, model: Any, packer: Packer, trie: Trie | None = None) -> None:
        """Set up.

        Args:
            model: a causal language model of transformers, on one device. Of one that `torch.compile` or
                DistributedDataParallel wraps, the model inside is called.
            packer: builds the prompts; its catalogue is what can be recommended.
            trie: of that catalogue, where one is kept (`recommend.trie_files`); None builds it.

        Raises:
            TypeError: a model without output embeddings.
            ValueError: a model with too few embeddings, with logits that are not those of its output embedding or not
                finite, or that decodes otherwise than it reads (`patchrec_fast.hf.check`); a title that holds the
                end-of-turn token; a trie of another catalogue.
        """
        end = packer.prompt.end_of_turn
        if trie is None:
            trie = Trie.from_catalogue(packer.catalogue, end)
        else:
            trie_files.check(trie, packer.catalogue, end)
        self.model, self.packer, self.trie = model, packer, trie
        self._model = unwrapped(model)
        with exclusive(self._model):
            self._head = LMHead(self._model)
            check_decoding(self._model)
        self._runs: dict[Hashable, Run] = {}  # inside `engine`
        self._blocks = 0  # of `engine` that somebody is in
        self._cache: KVCache | None = None  # and of users who return
        self._weights: tuple[Any, ...] = ()  # their fingerprint, since the first run was kept
        if int(trie.token.max()) >= self._head.size:
            raise ValueError(
                f"model: its {self._head.size} logits do not cover the titles' token {int(trie.token.max())}; "
                "call model.resize_token_embeddings(prompt.num_embeddings)"
            )

    def __getstate__(self) -> dict[str, Any]:
        """A copy keeps nothing of other calls, and nobody is inside its `engine`."""
        return {**vars(self), "_runs": {}, "_blocks": 0, "_weights": (), "_cache": None}

    @contextmanager
    def engine(self, cache: KVCache | None = None) -> Iterator[None]:
        """Inside, what one call prepares serves the next, of any thread: the beginning that all prompts share, the
        titles' part of the head, CUDA graphs; and with a cache, the prompts of users who return.

        The answers are those of calls outside. Of a user's prompt, what it begins with alike at this visit and the last
        is not read again; how much that is, the policy says (`SessionPatches(anchor="oldest")`, `Packer(step=)`).
        After a change of the model, all is read anew: a change of few of its numbers that torch does not count
        (through `.data`, or another process) is not seen. A cache may serve several recommenders of one model, such as
        one for each version of the catalogue, and outlives the block.

        Blocks may overlap: what is kept goes when nobody is inside any more.

        Args:
            cache: for calls with `users`; None for none, or inside another block the one of that.

        Raises:
            TypeError: no KVCache.
            ValueError: inside a block with another cache; host memory for a model that is on the CPU.
        """
        if cache is not None and not isinstance(cache, KVCache):
            raise TypeError(f"cache: expected a KVCache, got {type(cache).__name__}")
        if cache is not None and cache.host_bytes and next(self._model.parameters()).device.type == "cpu":
            raise ValueError("cache: host_bytes are for a model on another device than the CPU; expected 0")
        with exclusive(self._model):
            if self._blocks and cache is not None and cache is not self._cache:
                raise ValueError("cache: another block of this recommender's engine is open, with another cache")
            if cache is not None:
                self._cache = cache
            self._blocks += 1
        try:
            yield
        finally:
            with exclusive(self._model):
                self._blocks -= 1
                if not self._blocks:
                    self._runs, self._weights, self._cache = {}, (), None

    @contextmanager
    def _run(
        self,
        normalize: Normalize,
        closes: bool = False,
        graphed: BeamConfig | None = None,
        required: bool = False,
    ) -> Iterator[Run]:
        """A run with these options, by which nobody else calls the model; inside `engine` the one that there is."""
        with exclusive(self._model), own_modes(self.device) as autocast:
            if self._blocks:
                self._forget_another_model()
            key = normalize, closes, graphed, required, autocast
            run = self._runs.pop(key, None)  # a call that fails, or one inside this one, leaves or finds it nowhere
            if run is None:
                known = self._model, self._head, self.packer, self.trie
                run = Run(*known, normalize, closes, autocast, self._cache)
                if graphed is not None:
                    run.use_static_shapes(graphed, required)
            yield run
            if self._blocks:
                self._runs[key] = run

    def _forget_another_model(self) -> None:
        weights = fingerprint(self._model)
        if weights != self._weights:
            self._runs, self._weights = {}, weights
        if self._cache is not None:
            self._cache.check_model(weights)

    def _users(self, histories: Histories, users: Sequence[Hashable] | NDArray[Any] | None) -> Users:
        """The histories and the ids of users, checked."""
        flat = Ragged(*flatten(histories))
        if users is None:
            return Users(flat)
        ids = users.tolist() if isinstance(users, np.ndarray | Tensor) else list(users)
        if len(ids) != len(flat.lengths):
            raise ValueError(f"users: got {len(ids)} for {len(flat.lengths)} histories, expected one a history")
        for each in ids:
            if not isinstance(each, Hashable):
                raise TypeError(f"users: expected ids such as numbers or strings, got {each!r}")
        if self._cache is None:
            raise ValueError("users: nobody keeps what they have read; call inside `with rec.engine(KVCache(...))`")
        return Users(flat, ids)

    def recommend(
        self,
        histories: Histories,
        k: int = 20,
        method: Method = "beam",
        *,
        users: Sequence[Hashable] | NDArray[Any] | None = None,
        normalize: Normalize = "vocab",
        exclude_seen: bool = False,
        allow: Ids | None = None,
        deny: Ids | None = None,
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
            k: how many titles; where the catalogue has fewer, all, and then -1. At most 10,000, or the catalogue's
                titles where they are more. How many are asked for does not change which come first, up to 20.
            method: "beam": beam search, transformers' own result. "exact": the true best titles. "diverse": the
                decoder of the paper's released code, which may give a title twice.
            users: (B,) the caller's id of each user, inside `engine` with a cache: what their prompts at the last visit
                began with is not read again. Two histories of one user are two visits.
            normalize: a token's probability is its share among the whole vocabulary ("vocab"), among the tokens that
                titles use ("catalogue", cheaper), or among the tokens that may follow ("children": the titles'
                probabilities add up to 1).
            exclude_seen: never answer an item of the user's history, all of it as given. Of items that share a title
                (`Catalogue.answers`) the first unseen one is the answer; the title is left out when all are seen.
            allow: ids of the only items that may be answers, for every user of the call; None for all. As with what has
                been seen, the search is kept from the others, and a title's first item that may be one is the answer.
            deny: ids of items that are no answers, allowed or not.
            beams: how many run side by side, at least k; None is k or 20, whichever is more. For "beam" more than
                titles are as many; for "diverse" they are its groups, of which the k best are answers.
            length_penalty: titles are ordered by log-probability over `length ** length_penalty`, which must stay
                within 1e-30 and 1e30. None is 0 for "beam", and for "diverse" the paper's 1; "exact" takes none.
            early_stopping: for "beam", as `recommend.search.beam.BeamConfig` has it.
            diversity_penalty: for "diverse", from 0 to 1000.
            batch_size: users decoded at once. A batch that does not fit the GPU is halved, with a warning.
            cuda_graphs: for "beam" on a GPU: run the search as CUDA graphs, which the host waits for once a token
                (`recommend.search.static_beam`); the answers are the same. None does so where it can, True or raises.

        Raises:
            TypeError: ids that are not integers.
            ValueError: an empty history, an unknown item, a k, batch size or option out of range; nothing that is
                allowed and not denied; logits that are not finite, with the first user whose they are.
            RuntimeError: `cuda_graphs=True` where they cannot serve, and why.
        """
        k, batch_size = check_count("k", k, minimum=1), check_count("batch_size", batch_size, minimum=1)
        config = _config(self.trie, method, k, beams, length_penalty, early_stopping)
        penalty = check_number("diversity_penalty", diversity_penalty, 0, _MOST_PENALTY)
        if cuda_graphs is not None and not isinstance(cuda_graphs, bool):
            raise TypeError(f"cuda_graphs: expected True, False or None, got {cuda_graphs!r}")
        if method != "beam" and cuda_graphs:
            raise ValueError(f"cuda_graphs: only method='beam' has them, got {method!r}")
        exclusion = Exclusion(self.trie, exclude_seen, allow, deny)

        def decode(state: DecodeState) -> Hypotheses:
            if method == "exact":
                return exact(state, config.k)
            if method == "diverse":
                return diverse(state, config.k, config.beams, penalty, config.length_penalty)
            return beam(state, config)

        graphed = method == "beam" and cuda_graphs is not False
        batch = self._users(histories, users)
        with self._run(normalize, bool(exclusion), config if graphed else None, cuda_graphs is True) as run:
            parts = run.decode(batch, decode, batch_size, exclusion)
            rows, rows_read, seconds = run.rows, run.rows_read, run.seconds
        leaf, score, log_prob = (torch.cat(column).numpy() for column in zip(*(each for each, _ in parts), strict=True))
        _check_finite(score)
        rest = (0, 0), (0, k - leaf.shape[1])  # more than there are titles
        return Recommendations(
            items=np.pad(exclusion.first_items(leaf, batch.histories), rest, constant_values=-1),
            log_probs=np.pad(log_prob, rest, constant_values=-np.inf),
            scores=np.pad(score, rest, constant_values=-np.inf),
            num_scored=torch.cat([scored for _, scored in parts]).numpy(),
            rows=rows,
            rows_read=rows_read,
            seconds=seconds,
            catalogue=self.packer.catalogue,
        )

    def scores(
        self,
        histories: Histories,
        *,
        users: Sequence[Hashable] | NDArray[Any] | None = None,
        normalize: Normalize = "vocab",
        batch_size: int = 4,
    ) -> NDArray[np.float32]:
        """Every title's log-probability, by brute force: one row of the model and of its head for each inner node.

        Returns:
            (B, I) float32, items in the order of the catalogue.

        Raises:
            TypeError, ValueError: as `recommend`.
        """
        leaf = torch.from_numpy(self.trie.leaf_of(self.packer.catalogue.item_ids))

        def decode(state: DecodeState) -> tuple[Tensor]:
            return (score_all_titles(state)[:, leaf.to(state.trie.token.device)],)

        batch, batch_size = self._users(histories, users), check_count("batch_size", batch_size, minimum=1)
        with self._run(normalize) as run:
            parts = run.decode(batch, decode, batch_size)
        table = torch.cat([each[0] for each, _ in parts]).numpy()
        _check_finite(table)
        return table

    def rank(
        self,
        histories: Histories,
        targets: ArrayLike,
        *,
        users: Sequence[Hashable] | NDArray[Any] | None = None,
        normalize: Normalize = "vocab",
        batch_size: int = 4,
    ) -> NDArray[np.int64]:
        """The rank of an item's title among all titles, by log-probability, 1 for the best: HR and NDCG at any K.

        Titles with equal log-probabilities all get the last of their ranks.

        Args:
            targets: (B,) item ids, one for each history.
            users, normalize, batch_size: as `scores`.

        Returns:
            (B,) int64.

        Raises:
            TypeError, ValueError: as `recommend`; another number of targets than of histories.
        """
        wanted = integers("targets", targets)
        given = Ragged(*flatten(histories))
        if len(wanted) != (count := len(given.lengths)):
            raise ValueError(f"targets: got {len(wanted)} for {count} histories, expected one a history")
        place = self.packer.catalogue.index(wanted)
        _, one_each = np.unique(self.trie.leaf_of(self.packer.catalogue.item_ids), return_index=True)
        table = self.scores(given, users=users, normalize=normalize, batch_size=batch_size)
        return (table[:, one_each] >= table[np.arange(len(table)), place][:, None]).sum(1)

    @property
    def catalogue(self) -> Catalogue:
        """What can be recommended."""
        return self.packer.catalogue

    @property
    def device(self) -> torch.device:
        """The model's."""
        return next(self._model.parameters()).device

    def fingerprint(self) -> dict[str, Any]:
        """Of model, prompts, catalogue and the beams of a call that asks for none in number, JSON values
        (`patchrec_fast.models.fingerprint`)."""
        return {**of_model(self.model), **of_packer(self.packer), "beams": default_beams(1)}

    def settings(self) -> dict[str, Any]:
        """How the prompts are made, and the model's dtype and size, in words and numbers for a report."""
        parameters = list(self.model.parameters())
        return {
            "policy": repr(self.packer.policy),
            "max_items": self.packer.max_items,
            "dtype": str(parameters[0].dtype).removeprefix("torch."),
            "parameters": sum(parameter.numel() for parameter in parameters),
        }


def _config(
    trie: Trie, method: Method, k: int, beams: int | None, length_penalty: float | None, early_stopping: EarlyStopping
) -> BeamConfig:
    """What `recommend` was asked for, checked; no more answers and beams than titles, but "diverse"'s may share one."""
    if k > (largest := most_answers(trie.titles)):
        raise ValueError(f"k: expected at most {largest}, got {k}; there are {trie.titles} titles")
    if method not in ("beam", "exact", "diverse"):
        raise ValueError(f"method must be 'beam', 'exact' or 'diverse', got {method!r}")
    if not isinstance(early_stopping, bool) and early_stopping != "never":
        raise ValueError(f"early_stopping must be False, True or 'never', got {early_stopping!r}")
    if method == "exact" and length_penalty:
        raise ValueError(f"length_penalty: method='exact' orders by log-probability, got {length_penalty}")
    if method == "exact" and beams is not None:
        raise ValueError(f"beams: method='exact' has none, got {beams}")
    if method != "beam" and early_stopping is not False:
        raise ValueError(f"early_stopping: only method='beam' has it, got {early_stopping!r} for {method!r}")
    if length_penalty is None:
        length_penalty = 1.0 if method == "diverse" else 0.0
    most = _POWER / math.log10(trie.depth)
    length_penalty = check_number("length_penalty", length_penalty, -most, most)
    beams = check_count("beams", default_beams(k) if beams is None else beams, minimum=k)
    if method == "diverse":
        return BeamConfig(k, beams, length_penalty)
    return BeamConfig(min(k, trie.titles), min(beams, trie.titles), length_penalty, early_stopping)


def _check_finite(scores: NDArray[np.float32]) -> None:
    """Raise ValueError where a user's scores, (B, n), are NaN: a search's mark for logits that are not finite."""
    bad = np.flatnonzero(np.isnan(scores).any(axis=1))
    if len(bad):
        raise ValueError(
            f"model: its logits are not finite (NaN or infinite) for {len(bad)} of {len(scores)} users, the first at "
            f"place {bad[0]}; has training diverged, or are its numbers too large for its dtype?"
        )
