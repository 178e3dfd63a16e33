# SPDX-License-Identifier: Apache-2.0
"""How sure a metric is: bootstrap intervals, and a paired comparison of two runs on the same samples.

The samples of one user are alike (ML-1M's 11,494 test samples are 476 users'), so users are drawn, each with all
samples of theirs; drawing samples would make the intervals too narrow.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .metrics import Values

_DRAWN_AT_ONCE = 2**22  # users drawn at a time: 32 MiB of integers


class Estimate(NamedTuple):
    """A mean over samples, and the ends of its interval."""

    value: float
    low: float
    high: float


class Comparison(NamedTuple):
    """The mean of `second - first` with its interval, and how likely one as large is without a difference."""

    difference: Estimate
    p_value: float


def estimate(
    values: Values,
    users: ArrayLike | None = None,
    *,
    confidence: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Means with percentile bootstrap intervals (Efron 1979), users drawn with replacement.

    Args:
        values: metric -> (S,) a value of each sample, S at least 1.
        users: (S,) whose sample each is; None makes each sample its own user.
        confidence: of the interval, between 0 and 1.
        draws: bootstrap replicates.
        seed: the same seed gives the same intervals.

    Raises:
        ValueError: no samples, other shapes, or an argument out of range.
    """
    sums, sizes = _by_user(values, users)  # (U, M), (U,)
    _check(confidence, draws)
    low, high = np.quantile(_replicates(sums, sizes, draws, seed), [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    means = sums.sum(axis=0) / sizes.sum()  # (M,)
    return {
        name: Estimate(float(mean), float(least), float(most))
        for name, mean, least, most in zip(values, means, low, high, strict=True)
    }


def compare(
    first: Values,
    second: Values,
    users: ArrayLike | None = None,
    *,
    confidence: float = 0.95,
    draws: int = 1000,
    permutations: int = 10_000,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Two runs on the same samples: differences, their intervals, and two-sided sign-flip p-values.

    Without a difference each user's summed difference is as likely to have the other sign; p is the part of random
    signs that make a mean at least as far from 0, the observed one counted too, so never 0.

    Args:
        first, second: the same metrics over the same samples, (S,) each.
        users, confidence, draws, seed: as in `estimate`.
        permutations: random signs drawn.

    Raises:
        ValueError: other metrics or shapes, or an argument out of range.
    """
    if first.keys() != second.keys():
        raise ValueError(f"second: expected the metrics {list(first)}, got {list(second)}")
    for name, value in first.items():
        if np.shape(value) != np.shape(second[name]):
            raise ValueError(f"second: expected {np.shape(value)} values of {name}, got {np.shape(second[name])}")
    if permutations < 1:
        raise ValueError(f"permutations: expected at least 1, got {permutations}")
    difference = {name: second[name] - first[name] for name in first}
    estimates = estimate(difference, users, confidence=confidence, draws=draws, seed=seed)
    p_values = _sign_flips(_by_user(difference, users)[0], permutations, seed)
    return {name: Comparison(estimates[name], float(p)) for name, p in zip(difference, p_values, strict=True)}


def _by_user(values: Values, users: ArrayLike | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums (U, M) and numbers (U,) of each user's samples."""
    if not values:
        raise ValueError("values: got no metrics, expected at least one")
    table = np.stack(list(values.values()), axis=1)  # (S, M)
    if not len(table):
        raise ValueError("values: got no samples, expected at least one")
    if users is None:
        return table, np.ones(len(table), np.float64)
    numbers = np.asarray(users)
    if numbers.shape != table.shape[:1]:
        raise ValueError(f"users: expected shape {table.shape[:1]}, got {numbers.shape}")
    _, user, sizes = np.unique(numbers, return_inverse=True, return_counts=True)
    columns = [np.bincount(user, column, len(sizes)).astype(np.float64, copy=False) for column in table.T]
    return np.stack(columns, axis=1), sizes.astype(np.float64)


def _check(confidence: float, draws: int) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number between 0 and 1, got {confidence}")
    if draws < 1:
        raise ValueError(f"draws: expected at least 1, got {draws}")


def _replicates(
    sums: NDArray[np.float64], sizes: NDArray[np.float64], draws: int, seed: int
) -> NDArray[np.float64]:  # (draws, M)
    """The means over as many users as there are, drawn with replacement."""
    rng = np.random.default_rng(seed)
    users = len(sizes)
    means = []
    for count in _parts(draws, users):
        drawn = rng.integers(0, users, (count, users)) + users * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * users).reshape(count, users)  # each user was drawn
        means.append((times @ sums) / (times @ sizes)[:, None])
    return np.concatenate(means)


def _sign_flips(sums: NDArray[np.float64], permutations: int, seed: int) -> NDArray[np.float64]:  # (M,)
    rng = np.random.default_rng(seed)
    observed = np.abs(sums.sum(axis=0))  # (M,)
    # The same sum in another order may come out lower by its rounding, and is as far from 0.
    observed -= len(sums) * np.finfo(np.float64).eps * np.abs(sums).sum(axis=0)
    reached = np.zeros(sums.shape[1], np.int64)
    for count in _parts(permutations, len(sums)):
        signs = rng.integers(0, 2, (count, len(sums)), np.int8) * 2.0 - 1.0
        reached += (np.abs(signs @ sums) >= observed).sum(axis=0)
    return (reached + 1) / (permutations + 1)


def _parts(draws: int, users: int) -> Iterator[int]:
    """`draws` in parts, each of which is a bounded number of users."""
    at_once = max(1, _DRAWN_AT_ONCE // users)
    for begin in range(0, draws, at_once):
        yield min(at_once, draws - begin)
