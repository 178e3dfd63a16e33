# SPDX-License-Identifier: Apache-2.0
"""Samples in a given order -> optimizer steps -> micro-batches.

A step is a run of the order.

Inside a step the samples are dealt to its micro-batches heaviest first, there and back again (0, 1, 2, 2, 1, 0, 0,
...), which evens out their rows or targets. It changes which process reads a sample, never which step learns from it.

Nothing is dropped, padded or repeated, except where the samples cannot be dealt at all (`split_by_count`,
`fill`).
"""

import numpy as np
from numpy.typing import NDArray

from ..ragged import to_offsets


def split_by_count(samples: int, parts: int, most: int) -> NDArray[np.int64]:
    """Steps of nearly equal numbers of samples, as few as there can be.

    Args:
        samples: S, at least `parts`.
        parts: micro-batches of a step.
        most: samples of a micro-batch.

    Returns:
        (steps + 1,) int64, where each step starts, and the end: S, or less where `most` is 1 and S no multiple of
        `parts`.
    """
    steps = min(-(-samples // (parts * most)), samples // parts)
    dealt = min(samples, steps * parts * most)
    return np.arange(steps + 1) * dealt // steps


def fill(weights: NDArray[np.int64], parts: int, most: int) -> NDArray[np.int64]:
    """Steps filled, one after another, until a micro-batch would weigh more than `most`.

    Args:
        weights: (S,) int64 of each sample in order, its rows or targets, each at most `most`; S is at least `parts`.
        parts: micro-batches of a step.
        most: rows or targets of a micro-batch.

    Returns:
        (steps + 1,) int64, where each step starts, and the end: S, or less where even one sample a micro-batch is
        too many for the samples that are left.
    """
    total = to_offsets(weights)
    starts = [0]
    while (start := starts[-1]) < len(weights):
        size = int(np.searchsorted(total, total[start] + parts * most, side="right")) - 1 - start
        while (heaviest := _heaviest(weights[start : start + size], parts)) > most:
            size = max(parts, min(size - 1, size * most // heaviest))
        starts.append(start + size)

    # The last step takes from the ones before it what it lacks for one sample a micro-batch. Fewer samples never
    # make a micro-batch of `balanced` heavier, so all still fit.
    steps = len(starts) - 1
    if len(weights) < steps * parts:
        return np.array(starts[:-1])
    latest = len(weights) - parts * np.arange(steps, -1, -1)
    return np.minimum(starts, latest)


def balanced(weights: NDArray[np.int64], parts: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The samples of a step in its micro-batches.

    Args:
        weights: (n,) int64 of each sample.
        parts: micro-batches.

    Returns:
        order (n,) int64, a permutation that puts one micro-batch after another, and counts (parts,) int64, which
        differ by one at most.
    """
    heaviest = np.argsort(-weights, kind="stable")
    part = _there_and_back(len(weights), parts)
    return heaviest[np.argsort(part, kind="stable")], np.bincount(part, minlength=parts)


def _heaviest(weights: NDArray[np.int64], parts: int) -> int:
    """The heaviest micro-batch of `balanced`."""
    if parts == 1:
        return int(weights.sum())
    return int(np.bincount(_there_and_back(len(weights), parts), weights=np.sort(weights)[::-1]).max())


def _there_and_back(count: int, parts: int) -> NDArray[np.int64]:
    lap, place = np.divmod(np.arange(count), parts)
    return np.where(lap % 2, parts - 1 - place, place)
