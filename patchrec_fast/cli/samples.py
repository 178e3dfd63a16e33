# SPDX-License-Identifier: Apache-2.0
"""What `evaluate` and `baseline` measure on: the samples of a split, all of them or some, and whose they are."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .numbers import whole

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..data import Dataset, Samples


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--split", default="test", choices=("train", "val", "test"), help="default: test")
    add("--k", type=whole(1), nargs="+", default=[10, 20], metavar="K", help="of HR@K and NDCG@K (default: 10 20)")
    add("--limit", type=whole(1), metavar="N", help="only N samples, evenly spread over the users")


def chosen(options: argparse.Namespace, dataset: Dataset) -> tuple[Samples, NDArray[np.int32]]:
    """The samples with whole histories, S of them, and (S,) the number of each one's user.

    Raises:
        ValueError: the split has none.
    """
    import numpy as np

    from ..data import Samples
    from ..evaluation.samples import users_of
    from ..layout.histories import checked
    from ..train.start import some

    samples = dataset.split(options.split, max_items=None)  # a packer cuts them; all of it has been seen
    if not len(samples.targets):
        raise ValueError(f"--split: {options.data} has no {options.split} samples")
    users = Samples(samples.histories, users_of(*checked(*samples)).astype(np.int32))
    return some(samples, options.limit), some(users, options.limit).targets
