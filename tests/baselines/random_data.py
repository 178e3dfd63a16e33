# SPDX-License-Identifier: Apache-2.0
"""Small random datasets: repeated items, shared titles, users without a train split."""

from itertools import pairwise

import numpy as np

from patchrec_fast.data import Dataset
from patchrec_fast.ragged import to_offsets
from tests.recommend.catalogues import catalogue_of


def random_data(seed, users=30, items=14, longest=25):
    """A dataset and its catalogue; ids are apart and in another order than the catalogue's, three titles are shared."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(100)[:items]
    titles = {int(item): f"t{place % (items - 3)}" for place, item in enumerate(ids)}
    lengths = rng.integers(3, longest, users)
    train = rng.integers(0, lengths - 1)  # interactions in the train split
    splits = {
        "train": np.stack([np.where(train > 0, 0, -1), train - 1], 1),
        "val": np.stack([train, train], 1),
        "test": np.stack([train + 1, lengths - 1], 1),
    }
    popular = rng.dirichlet(np.ones(items))
    dataset = Dataset(rng.choice(ids, lengths.sum(), p=popular), to_offsets(lengths), titles, splits)
    number = {title: place for place, title in enumerate(dict.fromkeys(titles.values()))}
    return dataset, catalogue_of({item: (number[title],) for item, title in titles.items()})


def histories_of(samples):
    (flat, offsets), targets = samples
    return [flat[begin:end].tolist() for begin, end in pairwise(offsets)], targets
