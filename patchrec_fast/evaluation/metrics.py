# SPDX-License-Identifier: Apache-2.0
"""HR@K and NDCG@K from the place of the target in one list of recommendations.

A *rank* counts from 0; a target that is not in the list is a MISS and has no rank, so that every K up to the length
of the list is read off one decoding. A hit is an exact match of the title: items that share a title are one answer,
which is what `Catalogue.answers` numbers, by tokens, and `answers` where there are none.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

MISS = -1

Values = dict[str, NDArray[np.float64]]
"""Metric name, such as "HR@10" -> (S,) the value of each sample; the metric is their mean."""


def answers(titles: Iterable[str]) -> NDArray[np.int64]:
    """Numbers the titles: equal strings get equal numbers, 0, 1, ... in the order of their first item.

    Args:
        titles: I strings.

    Returns:
        (I,) int64.
    """
    texts = list(titles)
    number = {title: place for place, title in enumerate(dict.fromkeys(texts))}
    return np.fromiter(map(number.__getitem__, texts), np.int64, len(texts))


def ranks(recommended: ArrayLike, targets: ArrayLike) -> NDArray[np.int64]:
    """The first place of each target in its list.

    The order of the list decides: equal scores were put in order by whoever made it. An answer that is listed twice,
    as the paper's decoder does, takes two places.

    Args:
        recommended: (S, k) integers, best first; -1 where a list is shorter.
        targets: (S,) integers, none negative.

    Returns:
        (S,) int64, from 0 to k - 1, or MISS.

    Raises:
        ValueError: other shapes, or a negative target.
    """
    lists, wanted = np.asarray(recommended), np.asarray(targets)
    if lists.ndim != 2 or wanted.shape != lists.shape[:1]:
        raise ValueError(f"recommended, targets: expected (S, k) and (S,), got {lists.shape} and {wanted.shape}")
    if (wanted < 0).any():
        raise ValueError(f"targets: expected no negative number, got {wanted.min()}")
    return _first(lists == wanted[:, None])


def ranks_of_scores(scores: ArrayLike, targets: ArrayLike) -> NDArray[np.int64]:
    """How many answers stand before each target when all of them are scored; a tie counts against it.

    Pessimistic, so that no recommender gains by giving many answers one score.

    Args:
        scores: (S, A) real; -inf leaves an answer out.
        targets: (S,) integers from 0 to A - 1.

    Returns:
        (S,) int64, from 0 to A - 1; MISS where the target's own score is -inf.

    Raises:
        ValueError: other shapes, a target outside, or a score that is NaN.
    """
    table, wanted = np.asarray(scores), np.asarray(targets)
    if table.ndim != 2 or wanted.shape != table.shape[:1]:
        raise ValueError(f"scores, targets: expected (S, A) and (S,), got {table.shape} and {wanted.shape}")
    if wanted.size and not 0 <= wanted.min() <= wanted.max() < table.shape[1]:
        raise ValueError(f"targets: expected 0 to {table.shape[1] - 1}, got {wanted.min()} to {wanted.max()}")
    if np.isnan(table).any():
        raise ValueError("scores: expected numbers, got NaN")
    own = np.take_along_axis(table, wanted[:, None], axis=1)  # (S, 1)
    before = (table >= own).sum(axis=1) - 1  # the target itself
    return np.where(own[:, 0] == -np.inf, MISS, before)


def values(ranks: ArrayLike, ks: Sequence[int]) -> Values:
    """HR@K and NDCG@K of every sample, for every K.

    One answer is relevant, so that HR is 1 for a rank below K and 0 otherwise, and NDCG is 1 / log2(rank + 2) in place
    of the 1 (Järvelin and Kekäläinen 2002; the ideal gain is 1).

    Args:
        ranks: (S,) integers from 0, or MISS.
        ks: positive.

    Returns:
        "HR@K" and "NDCG@K" for each K in turn -> (S,) float64.

    Raises:
        ValueError: no K, or one below 1; a rank below MISS.
    """
    place = np.asarray(ranks)
    if not len(ks) or min(ks) < 1:
        raise ValueError(f"ks: expected positive numbers, got {ks}")
    if place.size and place.min() < MISS:
        raise ValueError(f"ranks: expected {MISS} for a miss or a place from 0, got {place.min()}")
    gain = 1 / np.log2(np.maximum(place, 0) + 2.0)  # (S,)
    found: Values = {}
    for k in ks:
        hit = ((place != MISS) & (place < k)).astype(np.float64)  # (S,)
        found[f"HR@{k}"] = hit
        found[f"NDCG@{k}"] = hit * gain
    return found


def _first(match: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(S,): the first True of each row of (S, k), or MISS."""
    if not match.shape[1]:
        return np.full(len(match), MISS, np.int64)
    return np.where(match.any(axis=1), match.argmax(axis=1), MISS)
