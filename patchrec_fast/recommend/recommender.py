# SPDX-License-Identifier: Apache-2.0
"""`Recommender`: histories in, the catalogue's best titles out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..hf import attach
from ..layout import Packer
from ..layout.histories import Histories, flatten
from ..layout.policies import check_count
from .beam import EarlyStopping, Found, beam
from .head import Head
from .reader import NORMALIZE, Normalize, Reader
from .trie import Trie

Method = Literal["beam"]


@dataclass(frozen=True, eq=False)
class Recommendations:
    """The answers for B users, best first.

    Attributes:
        items: (B, k) int64 item ids; -1 where fewer exist. Items that share a title are one answer, and this is the
            first of them in the catalogue.
        log_probs: (B, k) float32, the log-probability of the title and its end; -inf beside -1.
        scores: (B, k) float32, by which they are ordered: log_probs, unless lengths or repetitions are penalised.
    """

    items: NDArray[np.int64]
    log_probs: NDArray[np.float32]
    scores: NDArray[np.float32]

    def __len__(self) -> int:
        """The number of users."""
        return len(self.items)


class Recommender:
    """Decodes over a catalogue with a causal language model."""

    def __init__(self, model: Any, packer: Packer, trie: Trie | None = None) -> None:
        self.model = model
        self.packer = packer
        self.trie = Trie.from_catalogue(packer.catalogue, packer.prompt.end_of_turn) if trie is None else trie
        self._head = Head(model)

    def recommend(
        self,
        histories: Histories,
        k: int = 20,
        method: Method = "beam",
        *,
        normalize: Normalize = "vocab",
        beams: int | None = None,
        length_penalty: float = 0.0,
        early_stopping: EarlyStopping = False,
        batch_size: int = 16,
    ) -> Recommendations:
        """The k best titles of each user."""
        check_count("k", k, minimum=1)
        if normalize not in NORMALIZE:
            raise ValueError(f"normalize must be one of {', '.join(map(repr, NORMALIZE))}, got {normalize!r}")
        beams = k if beams is None else beams
        flat, offsets = flatten(histories)
        parts = []
        with torch.no_grad(), _ready(self.model):
            trie = self.trie.to(next(self.model.parameters()).device)
            for start in range(0, len(offsets) - 1, batch_size):
                cut = offsets[start : start + batch_size + 1]
                batch = self.packer.pack((flat[cut[0] : cut[-1]], cut - cut[0]), seed=0)
                reader = Reader(self.model, self._head, trie, batch, normalize)
                parts.append(beam(reader, k, beams, length_penalty, early_stopping))
        found = Found(*(torch.cat(column) for column in zip(*parts, strict=True)))
        return Recommendations(
            items=_numpy(trie.first_items(found.leaf)),
            log_probs=_numpy(found.log_prob),
            scores=_numpy(found.score),
        )


def _numpy(tensor: Tensor) -> NDArray[Any]:
    return tensor.cpu().numpy()


@contextmanager
def _ready(model: Any) -> Iterator[None]:
    """The model attached and in evaluation mode; afterwards as it was."""
    from ..hf.attach import _read_batch

    attached = _read_batch in model._forward_pre_hooks.values()
    training = model.training
    handle = None if attached else attach(model)
    model.eval()
    try:
        yield
    finally:
        model.train(training)
        if handle is not None:
            handle.detach()
