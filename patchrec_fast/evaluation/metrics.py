# SPDX-License-Identifier: Apache-2.0
"""HR@K and NDCG@K from the place of the target in one list of recommendations.

A *rank* counts from 1; a target that is not in the list is a MISS and has no rank, so that every K up to the length
of the list is read off one decoding. A hit is an exact match of the title: items that share a title are one answer,
which is what `Catalogue.answers` numbers.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..recommend.ranker import MISS as MISS

Values = dict[str, NDArray[np.float64]]
"""Metric name, such as "HR@10" -> (S,) the value of each sample; the metric is their mean."""


def ranks(recommended: ArrayLike, targets: ArrayLike) -> NDArray[np.int64]:
    """The rank of each target in its list, the first where it stands twice.

    The order of the list decides: equal scores were put in order by whoever made it. An answer that is listed twice,
    as the paper's decoder does, takes two places.

    Args:
        recommended: (S, k) integers, best first; -1 where a list is shorter.
        targets: (S,) integers, none negative.

    Returns:
        (S,) int64, from 1 to k, or MISS.

    Raises:
        ValueError: other shapes, or a negative target.
    """
    lists, wanted = np.asarray(recommended), np.asarray(targets)
    if lists.ndim != 2 or wanted.shape != lists.shape[:1]:
        raise ValueError(f"recommended, targets: expected (S, k) and (S,), got {lists.shape} and {wanted.shape}")
    if (wanted < 0).any():
        raise ValueError(f"targets: expected no negative number, got {wanted.min()}")
    return _first(lists == wanted[:, None])


def values(ranks: ArrayLike, ks: Sequence[int]) -> Values:
    """HR@K and NDCG@K of every sample, for every K.

    One answer is relevant, so that HR is 1 for a rank up to K and 0 otherwise, and NDCG is 1 / log2(rank + 1) in place
    of the 1 (Järvelin and Kekäläinen 2002; the ideal gain is 1).

    Args:
        ranks: (S,) integers from 1, or MISS.
        ks: positive.

    Returns:
        "HR@K" and "NDCG@K" for each K in turn -> (S,) float64.

    Raises:
        ValueError: no K, or one below 1; a rank that is neither.
    """
    rank = np.asarray(ranks)
    if not len(ks) or min(ks) < 1:
        raise ValueError(f"ks: expected positive numbers, got {ks}")
    check_ranks(rank)
    gain = 1 / np.log2(np.maximum(rank, 1) + 1.0)  # (S,)
    found: Values = {}
    for k in ks:
        hit = ((rank != MISS) & (rank <= k)).astype(np.float64)  # (S,)
        found[f"HR@{k}"] = hit
        found[f"NDCG@{k}"] = hit * gain
    return found


def check_ranks(ranks: ArrayLike) -> None:
    """Raise ValueError where one is neither a rank nor a MISS."""
    given = np.asarray(ranks)
    if (wrong := given[(given < 1) & (given != MISS)]).size:
        raise ValueError(f"ranks: expected {MISS} for a miss or a rank from 1, got {wrong[0]}")


def _first(match: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(S,): the rank of the first True of each row of (S, k), or MISS."""
    if not match.shape[1]:
        return np.full(len(match), MISS, np.int64)
    return np.where(match.any(axis=1), match.argmax(axis=1) + 1, MISS)
