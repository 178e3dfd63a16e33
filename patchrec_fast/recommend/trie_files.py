# SPDX-License-Identifier: Apache-2.0
"""A trie in a file, and the fingerprint by which it knows its catalogue.

The file is NumPy's .npz without pickled objects. The fingerprint is a sum over items of a hash of id and tokens, so
it does not depend on their order, and a trie has the fingerprint of a catalogue with the same items whether it was
built in one go or by additions and removals. It tells mix-ups, not forgeries.
"""

from __future__ import annotations

import os
from itertools import pairwise
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray

from .. import _files
from ..layout import Catalogue
from .trie import TENSORS, Trie

FORMAT = 1
_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: multiplying spreads low bits upwards
_SHIFT = np.uint64(29)

Hashes = NDArray[np.uint64]


def save(trie: Trie, path: str | os.PathLike[str]) -> None:
    """Writes the trie; whole or not at all. `path` ends in .npz.

    Raises:
        ValueError: another ending.
    """
    if not str(path).endswith(".npz"):
        raise ValueError(f"path: expected a name that ends in .npz, got {str(path)!r}")
    arrays = {name: getattr(trie, name).cpu().numpy() for name in TENSORS}
    about = np.array([FORMAT, trie.end], np.int64)
    mark = np.array([of_trie(trie)], np.uint64)
    with _files.replacing(path) as temporary:
        np.savez(temporary, about=about, fingerprint=mark, levels=np.array(trie.levels), **arrays)


def load(path: str | os.PathLike[str], catalogue: Catalogue, end: int) -> Trie:
    """Reads what `save` wrote.

    Args:
        catalogue: the trie's own, as it is now.
        end: the end-of-turn token.

    Raises:
        FileNotFoundError: no such file.
        OSError: the file cannot be read.
        ValueError: not a trie of this format, a damaged one, or one of another catalogue or tokenizer; the message
            names the file.
    """
    with open(path, "rb") as file:
        try:
            trie = _read(file)
        except Exception as error:  # what zip, zlib and NumPy raise for bytes at random is many things
            raise ValueError(f"{path}: not a trie of patchrec_fast, or damaged ({error})") from error
    try:
        check(trie, catalogue, end)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return trie


def _read(file: IO[bytes]) -> Trie:
    """What `save` wrote, checked whole: it is what its levels, items and their leaves make, and they have its
    fingerprint."""
    with np.load(file, allow_pickle=False) as content:
        parts = {name: content[name] for name in (*TENSORS, "about", "levels", "fingerprint")}
    number, end = parts["about"].tolist()
    if number != FORMAT:
        raise ValueError(f"format {number}, expected {FORMAT}")
    trie = Trie(
        end, levels=tuple(parts["levels"].tolist()), **{name: torch.from_numpy(parts[name]) for name in TENSORS}
    )
    trie.check()
    if [of_trie(trie)] != parts["fingerprint"].tolist():
        raise ValueError("its content does not match its fingerprint")
    return trie


def check(trie: Trie, catalogue: Catalogue, end: int) -> None:
    """Raises ValueError where the trie is not of this catalogue, tokens and end token."""
    if trie.end != end:
        raise ValueError(f"trie: its titles end with token {trie.end}, those of this prompt with {end}")
    if of_trie(trie) != of_catalogue(catalogue):
        raise ValueError(
            f"trie: it is of another catalogue or tokenizer ({len(trie.items)} items, "
            f"{len(catalogue)} in this catalogue); build it again with Trie.from_catalogue"
        )


def of_catalogue(catalogue: Catalogue) -> int:
    """The fingerprint of items and their tokens."""
    starts, lengths = catalogue.offsets[:-1].astype(np.int64), np.diff(catalogue.offsets)
    title = np.zeros(len(catalogue), np.uint64)
    for place in range(int(lengths.max())):
        going = np.flatnonzero(lengths > place)
        title[going] = _mixed(title[going], catalogue.token_ids[starts[going] + place])
    return _total(title, catalogue.item_ids)


def of_trie(trie: Trie) -> int:
    """The fingerprint of the catalogue that has the trie's items."""
    parent, token = trie.parent.cpu().numpy(), trie.token.cpu().numpy()
    path = np.zeros(len(trie), np.uint64)
    for a, b in pairwise(trie.levels[1:]):
        path[a:b] = _mixed(path[parent[a:b]], token[a:b])
    return _total(path[parent[trie.leaves_of_items()]], trie.items.cpu().numpy())  # a title without its end


def _mixed(hashes: Hashes, values: NDArray[np.integer]) -> Hashes:
    """Hashes of sequences one value longer."""
    mixed = (hashes ^ (values.astype(np.int64).view(np.uint64) + np.uint64(1))) * _ODD  # + 1: a token 0 counts
    return (mixed ^ mixed >> _SHIFT) * _ODD


def _total(titles: Hashes, items: NDArray[np.int64]) -> int:
    return int(_mixed(titles, items).sum(dtype=np.uint64))
