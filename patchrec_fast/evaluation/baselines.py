# SPDX-License-Identifier: Apache-2.0
"""What a recommender has to beat: popularity and chance, on the same samples and with the same metrics."""

import numpy as np
from numpy.typing import NDArray

from ..data import Dataset, Samples
from ..layout.catalogue import Catalogue
from ..layout.histories import integers
from ..ragged import counting
from .metrics import MISS, answers
from .samples import checked


def baseline_ranks(
    dataset: Dataset, samples: Samples, seed: int = 0, catalogue: Catalogue | None = None
) -> dict[str, NDArray[np.int64]]:
    """Ranks among all titles of the dataset, 1 for the best.

    Popularity counts a title's interactions up to each user's last one in the train split; where two are equally
    popular, the target comes last. With "unseen", titles are left out of which the sample's own history has all items,
    as by `Recommender.recommend(exclude_seen=True)`; a target that is left out is a miss.

    Args:
        dataset: its titles are what can be recommended.
        samples: of any split; their histories say what was seen, so do not cut them short.
        seed: of the random order.
        catalogue: of the dataset's titles: those with the same tokens are one, as they are to a model evaluated beside
            (`Catalogue.answers`). None has no tokens: those that are the same string.

    Returns:
        "popularity", "popularity, unseen", "random" and "random, unseen" -> (S,) int64, as `metrics.values` takes
        them.

    Raises:
        ValueError: no samples, no train split, an item without a title, or a catalogue of other items.
    """
    flat, offsets, targets = checked(samples.histories, samples.targets)
    answer = _Answers(dataset, catalogue)
    wanted = answer(targets)  # (S,)
    sample, seen = _seen(answer, flat, offsets)
    excluded = np.bincount(sample[seen == wanted[sample]], minlength=len(wanted)) > 0  # (S,)

    count = np.bincount(answer(_train_items(dataset)), minlength=len(answer))  # (A,)
    rank = len(answer) - np.searchsorted(np.sort(count), count[wanted])  # at least as popular, itself too
    ahead = np.bincount(sample[count[seen] >= count[wanted[sample]]], minlength=len(wanted))
    candidates = len(answer) - np.bincount(sample, minlength=len(wanted))  # (S,) titles that are unseen
    rng = np.random.default_rng(seed)
    return {
        "popularity": rank,
        "popularity, unseen": np.where(excluded, MISS, rank - ahead),
        "random": 1 + rng.integers(0, len(answer), len(wanted)),
        "random, unseen": np.where(excluded, MISS, 1 + rng.integers(0, np.maximum(candidates, 1))),
    }


class _Answers:
    """Item ids -> numbers of their titles; its length is the number A of different titles.

    Attributes:
        ids: (I,) int64, of all items, rising.
        items: (A,) int64, how many items each title has.
    """

    def __init__(self, dataset: Dataset, catalogue: Catalogue | None) -> None:
        ids = integers("dataset.titles", list(dataset.titles))
        if catalogue is not None and len(catalogue) != len(ids):
            raise ValueError(f"catalogue: expected the {len(ids)} items of the dataset, got {len(catalogue)}")
        number = answers(dataset.titles.values()) if catalogue is None else catalogue.answers[catalogue.index(ids)]
        order = np.argsort(ids)
        self.ids, self._number = ids[order], number[order]
        self.items = np.bincount(number)

    def __call__(self, items: NDArray[np.integer]) -> NDArray[np.int64]:
        return self._number[self.place(items)]

    def place(self, items: NDArray[np.integer]) -> NDArray[np.int64]:
        """Their places in the order of ids."""
        place = np.searchsorted(self.ids, items).clip(max=len(self.ids) - 1)
        if not (known := self.ids[place] == items).all():
            raise ValueError(f"samples: item {items[~known][0]} has no title in the dataset")
        return place

    def __len__(self) -> int:
        return len(self.items)


def _train_items(dataset: Dataset) -> NDArray[np.int32]:
    if "train" not in dataset.splits:
        raise ValueError(f"dataset: expected a train split, got {sorted(dataset.splits)}")
    counts = dataset.splits["train"][:, 1].astype(np.int64) + 1  # (U,) 0 where the last position is -1
    return dataset.items[counting(dataset.offsets[:-1], counts)]


def _seen(
    answer: _Answers, flat: NDArray[np.int64], offsets: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each title of which a history has all items, once: sample and answer."""
    sample = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    _, once = np.unique(sample * len(answer.ids) + answer.place(flat), return_index=True)  # watched twice is one
    pairs, items = np.unique(sample[once] * len(answer) + answer(flat[once]), return_counts=True)
    whole = pairs[items == answer.items[pairs % len(answer)]]
    return whole // len(answer), whole % len(answer)
