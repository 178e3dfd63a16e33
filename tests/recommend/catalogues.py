# SPDX-License-Identifier: Apache-2.0
"""Random catalogues of every shape that a trie can have, as tokens: no tokenizer decides what comes out."""

import numpy as np

import patchrec_fast as pf
from patchrec_fast.ragged import to_offsets


def catalogue_of(titles):
    """item -> tokens, as a Catalogue."""
    tokens = [np.asarray(title, np.int32) for title in titles.values()]
    return pf.Catalogue(
        token_ids=np.concatenate(tokens),
        offsets=to_offsets(np.array([len(title) for title in tokens])).astype(np.int32),
        item_ids=np.array(list(titles), np.int64),
        titles=[str(title) for title in titles.values()],
    )


def any_titles(rng, letters):
    """`count` titles of up to 5 tokens: some begin alike, some are equal."""
    return [draw(rng, letters, rng.integers(1, 6)) for _ in range(rng.integers(2, 20))]


def prefixes(rng, letters):
    """Each begins the next."""
    longest = draw(rng, letters, rng.integers(2, 9))
    return [longest[: 1 + place] for place in range(len(longest))]


def duplicates(rng, letters):
    """Few titles, each of several items."""
    few = [draw(rng, letters, rng.integers(1, 4)) for _ in range(rng.integers(1, 4))]
    return [few[place] for place in rng.integers(0, len(few), rng.integers(2, 12))]


def single_tokens(rng, letters):
    """Each title a token."""
    return [draw(rng, letters, 1) for _ in range(rng.integers(1, 10))]


def one_item(rng, letters):
    """No choice at all."""
    return [draw(rng, letters, rng.integers(1, 8))]


def chains(rng, letters):
    """Long titles that part at once and never again."""
    return [draw(rng, letters, rng.integers(8, 25)) for _ in range(rng.integers(1, 6))]


def one_beginning(rng, letters):
    """All begin alike, and part late."""
    stem = draw(rng, letters, rng.integers(1, 8))
    return [stem + draw(rng, letters, rng.integers(0, 3)) for _ in range(rng.integers(2, 15))]


def wide(rng, letters):
    """Many children of the root, and one long title."""
    titles = [draw(rng, letters, rng.integers(1, 3)) for _ in range(rng.integers(20, 50))]
    return [*titles, draw(rng, letters, 10)]


KINDS = [any_titles, prefixes, duplicates, single_tokens, one_item, chains, one_beginning, wide]


def draw(rng, letters, length):
    return tuple(rng.choice(letters, length).tolist())


def random_titles(seed, tokens):
    """item -> tokens: a kind, an alphabet of 2 to 12 of `tokens`, and ids, drawn from a seed; items in any order."""
    rng = np.random.default_rng(seed)
    letters = rng.choice(tokens, rng.integers(2, 13), replace=False)
    titles = KINDS[seed % len(KINDS)](rng, letters)
    ids = rng.permutation(10**2)[: len(titles)] * rng.choice([1, 10**12])
    return dict(zip(ids.tolist(), titles, strict=True))
