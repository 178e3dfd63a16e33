# SPDX-License-Identifier: Apache-2.0
"""Scores that are a weighted sum over the history of what each of its titles says of every title.

All are made of one count, `pairs`: how often one title came before another in a user's history, near pairs for more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .._check import check_count, check_number
from ..data import Dataset
from ..layout.catalogue import Catalogue
from ..models import fingerprint
from ..ragged import Ragged
from .ranker import Baseline, Scores, train_titles


def pairs(histories: Ragged, num_titles: int, decay: float = 1.0, window: int | None = None) -> NDArray[np.float32]:
    """(A, A): at [i, j], decay**distance of every pair of a title i and a later title j of one user.

    Args:
        histories: titles by number, oldest first.
        num_titles: A.
        decay: above 0; 1 counts all pairs alike.
        window: the largest distance; neighbours are at 1.
    """
    titles, owners = histories.values, histories.owners()
    found = np.zeros(num_titles * num_titles, np.float32)
    longest = int(histories.lengths.max(initial=1))
    for distance in range(1, longest if window is None else min(window + 1, longest)):
        near = owners[:-distance] == owners[distance:]
        at = titles[:-distance][near] * num_titles + titles[distance:][near]
        np.add.at(found, at, np.float32(decay**distance))
    return found.reshape(num_titles, num_titles)


class ItemToItem(Baseline):
    """score = sum over the newest `history` titles of recency**age * weight[title, :], the newest's age being 0.

    Attributes:
        weight: (A, A) float32.
    """

    def __init__(
        self, catalogue: Catalogue, weight: NDArray[np.float32], recency: float, history: int | None, name: str
    ) -> None:
        super().__init__(catalogue)
        self.weight = weight
        self._recency = check_number("recency", recency, 0, 1)
        self._history = None if history is None else check_count("history", history, minimum=1)
        self._name = name

    def _scores(self, histories: Ragged) -> Scores:
        lengths = histories.lengths
        newest = histories.newest(lengths if self._history is None else np.minimum(lengths, self._history))
        age = np.repeat(newest.offsets[1:], newest.lengths) - 1 - np.arange(len(newest.values))
        rows = np.zeros((len(lengths), self.num_titles), np.float32)
        np.add.at(rows, (newest.owners(), newest.values), (self._recency**age).astype(np.float32))
        return rows @ self.weight

    def fingerprint(self) -> dict[str, Any]:
        settings = {"recency": self._recency, "history": self._history}
        return {"ranker": self._name, "weight": fingerprint.plain(self.weight), **settings}


class Transitions(ItemToItem):
    """How likely a title comes after those of the history, by the training users: a Markov chain that looks further.

    weight[i, j] = pairs[i, j] / (sum of pairs[i] + smoothing) / popularity[j]**discount.
    """

    def __init__(
        self,
        dataset: Dataset,
        catalogue: Catalogue,
        *,
        decay: float = 0.9,
        window: int = 40,
        recency: float = 0.8,
        history: int = 40,
        discount: float = 0.25,
        smoothing: float = 20.0,
    ) -> None:
        """Counts.

        Args:
            decay: a pair's weight, `decay**distance`.
            window: the largest distance of a pair.
            recency, history: of `ItemToItem`; `history=1` reads the last title alone.
            discount: scores are divided by the title's popularity to this power.
            smoothing: against titles that few titles came after; in pairs.

        Raises:
            TypeError, ValueError: an argument out of range; no train split, or an unknown item.
        """
        check_count("window", window, minimum=1)
        check_number("decay", decay, 0, 1)
        check_number("discount", discount, 0, 1)
        check_number("smoothing", smoothing, 0, 1e9)
        titles = train_titles(dataset, catalogue)
        num_titles = int(catalogue.answers.max()) + 1
        popularity = np.bincount(titles.values, minlength=num_titles)
        weight = pairs(titles, num_titles, decay, window)
        tiny = np.finfo(np.float32).tiny
        weight /= np.maximum(weight.sum(axis=1, keepdims=True) + np.float32(smoothing), tiny)
        weight *= np.maximum(popularity, 1).astype(np.float32) ** -discount
        super().__init__(catalogue, weight, recency, history, "transitions")


class ItemKNN(ItemToItem):
    """Cosine between titles over the training users, each title's nearest ones (Deshpande and Karypis 2004)."""

    def __init__(
        self,
        dataset: Dataset,
        catalogue: Catalogue,
        *,
        neighbours: int = 100,
        shrink: float = 10.0,
        decay: float = 0.8,
        window: int | None = 80,
        recency: float = 0.8,
        history: int | None = None,
    ) -> None:
        """Counts.

        Args:
            neighbours: how many titles speak for each title.
            shrink: added to the cosine's denominator: against titles that are alike by chance.
            decay, window: see `EASE`; 1 and None count users that have both titles.
            recency, history: of `ItemToItem`.

        Raises:
            TypeError, ValueError: an argument out of range; no train split, or an unknown item.
        """
        check_count("neighbours", neighbours, minimum=1)
        check_number("shrink", shrink, 0, 1e9)
        weight = gram(dataset, catalogue, decay, window)
        norm = np.sqrt(np.diag(weight))
        weight /= np.maximum(np.outer(norm, norm) + np.float32(shrink), np.finfo(np.float32).tiny)
        np.fill_diagonal(weight, 0)
        if neighbours < len(weight):
            far = np.argpartition(-weight, neighbours, axis=0)[neighbours:]
            np.put_along_axis(weight, far, 0, axis=0)
        super().__init__(catalogue, weight, recency, history, "item-knn")


class EASE(ItemToItem):
    """The linear model of each title by the others, in closed form (Steck 2019).

    With `decay` below 1 two titles of a user count for less the further they are apart, as if the user had a row for
    every moment, in which a title weighs the less the older it is; `recency` weighs the history so when it recommends.
    """

    def __init__(
        self,
        dataset: Dataset,
        catalogue: Catalogue,
        *,
        regularisation: float = 50.0,
        decay: float = 0.8,
        window: int | None = 80,
        recency: float = 0.75,
        history: int | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        """Solves.

        Args:
            regularisation: of the squared weights.
            decay, window: a pair of titles counts decay**distance, up to this distance.
            recency, history: of `ItemToItem`; it is Steck's with decay 1, no window and recency 1.
            dtype: that the matrix is inverted in.

        Raises:
            TypeError, ValueError: an argument out of range; no train split, or an unknown item.
        """
        check_number("regularisation", regularisation, 1e-3, 1e9)
        known = torch.from_numpy(gram(dataset, catalogue, decay, window)).to(dtype)
        known.diagonal().add_(regularisation)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(known))
        weight = inverse.div_(-inverse.diagonal().clone()).fill_diagonal_(0).float().numpy()
        super().__init__(catalogue, weight, recency, history, "ease")


def gram(dataset: Dataset, catalogue: Catalogue, decay: float, window: int | None) -> NDArray[np.float32]:
    """(A, A): decay**distance of every two places of a user's history, summed over users: X^T X where decay is 1.

    Raises:
        TypeError, ValueError: an argument out of range; no train split, or an unknown item.
    """
    check_number("decay", decay, 0, 1)
    if window is not None:
        check_count("window", window, minimum=1)
    titles = train_titles(dataset, catalogue)
    num_titles = int(catalogue.answers.max()) + 1
    found = pairs(titles, num_titles, decay, window)
    found += found.T.copy()
    found[np.diag_indices(num_titles)] += np.bincount(titles.values, minlength=num_titles)
    return found
