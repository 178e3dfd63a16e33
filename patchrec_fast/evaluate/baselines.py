# SPDX-License-Identifier: Apache-2.0
"""What a recommender has to beat: popularity and chance, on the same samples and with the same metrics."""

import numpy as np
from numpy.typing import NDArray

from ..data import Dataset, Samples
from ..layout.csr import counting
from .metrics import MISS, answers
from .samples import checked


def baseline_ranks(dataset: Dataset, samples: Samples, seed: int = 0) -> dict[str, NDArray[np.int64]]:
    """Ranks among all titles of the dataset.

    Popularity counts a title's interactions up to each user's last one in the train split; where two are equally
    popular, the target comes last. With "unseen", titles of the sample's own history are left out; a target that is
    in it is a miss.

    Args:
        dataset: its titles are what can be recommended.
        samples: of any split; their histories say what was seen, so do not cut them short.
        seed: of the random order.

    Returns:
        "popularity", "popularity, unseen", "random" and "random, unseen" -> (S,) int64, as `metrics.values` takes
        them.

    Raises:
        ValueError: no samples, or no train split.
    """
    flat, offsets, targets = checked(samples.histories, samples.targets)
    answer = _Answers(dataset)
    wanted = answer(targets)  # (S,)
    sample, seen = _seen(answer(flat), offsets, len(answer))
    excluded = np.bincount(sample[seen == wanted[sample]], minlength=len(wanted)) > 0  # (S,)

    count = np.bincount(answer(_train_items(dataset)), minlength=len(answer))  # (A,)
    before = len(answer) - np.searchsorted(np.sort(count), count[wanted]) - 1  # at least as popular, but itself
    ahead = np.bincount(sample[count[seen] >= count[wanted[sample]]], minlength=len(wanted))
    candidates = len(answer) - np.bincount(sample, minlength=len(wanted))  # (S,) titles that are unseen
    rng = np.random.default_rng(seed)
    return {
        "popularity": before,
        "popularity, unseen": np.where(excluded, MISS, before - ahead),
        "random": rng.integers(0, len(answer), len(wanted)),
        "random, unseen": np.where(excluded, MISS, rng.integers(0, np.maximum(candidates, 1))),
    }


class _Answers:
    """Item ids -> numbers of their titles; its length is the number A of different titles."""

    def __init__(self, dataset: Dataset) -> None:
        ids = np.fromiter(dataset.titles, np.int64, len(dataset.titles))
        self._order = np.argsort(ids)
        self._ids = ids[self._order]
        self._number = answers(dataset.titles.values())[self._order]

    def __call__(self, items: NDArray[np.integer]) -> NDArray[np.int64]:
        return self._number[np.searchsorted(self._ids, items)]

    def __len__(self) -> int:
        return int(self._number.max()) + 1


def _train_items(dataset: Dataset) -> NDArray[np.int32]:
    if "train" not in dataset.splits:
        raise ValueError(f"dataset: expected a train split, got {sorted(dataset.splits)}")
    counts = dataset.splits["train"][:, 1].astype(np.int64) + 1  # (U,) 0 where the last position is -1
    return dataset.items[counting(dataset.offsets[:-1], counts)]


def _seen(
    answer: NDArray[np.int64], offsets: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each title of each history once: sample and answer."""
    sample = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    pairs = np.unique(sample * count + answer)
    return pairs // count, pairs % count
