# SPDX-License-Identifier: Apache-2.0
"""A trained network over title numbers as a `Ranker`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..layout.catalogue import Catalogue
from ..models import fingerprint
from ..ragged import Ragged
from .networks import Network
from .ranker import Baseline, Scores


class Sequential(Baseline):
    """Scores the title that comes next by the network's state at the history's end.

    Attributes:
        network: in evaluation mode while it scores; where its weights are, the work is done.
    """

    def __init__(self, catalogue: Catalogue, network: Network) -> None:
        """Takes a network as it is.

        Raises:
            ValueError: it is of another number of titles than the catalogue.
        """
        super().__init__(catalogue)
        if network.titles.num_embeddings != self.num_titles:
            raise ValueError(
                f"network: expected one of the catalogue's {self.num_titles} titles, got one of "
                f"{network.titles.num_embeddings}"
            )
        self.network = network

    @property
    def device(self) -> torch.device:
        return self.network.titles.weight.device

    @torch.inference_mode()
    def _scores(self, histories: Ragged) -> Scores:
        newest = histories.newest(np.minimum(histories.lengths, self.network.recipe.length))
        titles = torch.from_numpy(padded(newest.values, newest.offsets[:-1], newest.lengths)).to(self.device)
        last = torch.from_numpy(newest.lengths - 1).to(self.device)
        was_training = self.network.training
        self.network.eval()
        states = self.network(titles)[torch.arange(len(last), device=self.device), last]
        scores: Scores = self.network.logits(states).float().cpu().numpy()
        self.network.train(was_training)
        return scores

    def fingerprint(self) -> dict[str, Any]:
        return {**fingerprint.of_model(self.network), "recipe": fingerprint.plain(self.network.recipe)}


def padded(values: NDArray[Any], begin: NDArray[np.integer[Any]], lengths: NDArray[np.int64]) -> NDArray[Any]:
    """(B, longest): the `lengths` (B,) values from `begin` (B,) on, and behind them any value."""
    place = np.arange(lengths.max())
    return values[begin[:, None] + np.minimum(place, lengths[:, None] - 1)]
