# SPDX-License-Identifier: Apache-2.0
"""The trie against dictionaries, its updates against building anew, its files against damage and mix-ups."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from patchrec_fast.ragged import Ragged
from patchrec_fast.recommend import Trie, trie_files
from patchrec_fast.recommend.exclusion import Exclusion
from patchrec_fast.recommend.trie import TENSORS
from tests.recommend import catalogues
from tests.recommend.catalogues import catalogue_of

END = 9


def random_titles(seed, count=60, first=100):
    """Of 1 to 6 tokens out of 4, so that many begin alike and some are equal."""
    rng = np.random.default_rng(seed)
    ids = first + rng.permutation(count)
    return {int(item): tuple(rng.integers(0, 4, rng.integers(1, 7)).tolist()) for item in ids}


def read_back(trie, node=0, path=()):
    """tokens with the end -> items, by walking."""
    found = {}
    children = range(int(trie.first[node]), int(trie.first[node + 1]))
    assert [int(trie.token[child]) for child in children] == sorted({int(trie.token[child]) for child in children})
    for child in children:
        assert int(trie.parent[child]) == node
        token = int(trie.token[child])
        if token == trie.end:
            found[(*path, token)] = trie.items[trie.item_first[child] : trie.item_first[child + 1]].tolist()
            assert trie.first[child] == trie.first[child + 1]
        else:
            assert trie.item_first[child] == trie.item_first[child + 1]
            found.update(read_back(trie, child, (*path, token)))
    return found


def by_title(titles):
    found = {}
    for item, title in titles.items():
        found.setdefault((*title, END), []).append(item)
    return found


def same(a, b):
    return a.levels == b.levels and a.end == b.end and all(torch.equal(getattr(a, n), getattr(b, n)) for n in TENSORS)


@pytest.mark.parametrize("seed", range(4))
def test_it_holds_the_titles(seed):
    titles = random_titles(seed)
    trie = Trie.from_catalogue(catalogue_of(titles), END)
    assert read_back(trie) == by_title(titles)
    assert trie.depth == 1 + max(map(len, titles.values()))


@pytest.mark.parametrize("seed", range(200))
def test_derived_tables(seed):
    """Of every kind of catalogue: leaves that end a level, too, whose children would begin where no node is."""
    titles = catalogues.random_titles(seed, range(END + 1, END + 20))
    trie = Trie.from_catalogue(catalogue_of(titles), END)
    assert read_back(trie) == by_title(titles)
    first, leaf = trie.first.tolist(), trie.is_leaf.tolist()
    children = [list(range(a, b)) for a, b in pairwise(first)]

    def chain(node):
        only = children[node][0] if len(children[node]) == 1 else None
        return 1 if only is None or leaf[only] else 1 + chain(only)

    def leaves(node):
        return int(leaf[node]) + sum(map(leaves, children[node]))

    assert trie.chain.tolist() == [chain(node) for node in range(len(trie))]
    assert trie.leaves.tolist() == [leaves(node) for node in range(len(trie))]
    assert trie.widest == max(map(len, children[1:]))
    assert torch.equal(trie.used[trie.column[1:]], trie.token[1:])


def test_one_title_of_one_token():
    trie = Trie.from_catalogue(catalogue_of({5: (3,)}), END)
    assert read_back(trie) == {(3, END): [5]}
    assert len(trie) == 3


def test_shared_titles():
    trie = Trie.from_catalogue(catalogue_of({8: (1, 2), 3: (1,), 4: (1, 2)}), END)
    assert read_back(trie) == {(1, 2, END): [8, 4], (1, END): [3]}
    assert Exclusion(trie).first_items([[trie.leaf_of([4])[0], -1]], Ragged([4], [0, 1])).tolist() == [[8, -1]]


@pytest.mark.parametrize("seed", range(4))
def test_add_is_building_anew(seed):
    old, new = random_titles(seed, 40), random_titles(seed + 50, 1 + 10 * seed, first=500)
    trie = Trie.from_catalogue(catalogue_of(old), END)
    assert same(trie.add(catalogue_of(new)), Trie.from_catalogue(catalogue_of({**old, **new}), END))
    assert read_back(trie) == by_title(old)


@pytest.mark.parametrize("gone", [1, 20, 59])
def test_remove_is_building_anew(gone):
    titles = random_titles(3)
    away = list(titles)[::-1][:gone]
    stays = {item: title for item, title in titles.items() if item not in away}
    trie = Trie.from_catalogue(catalogue_of(titles), END)
    assert same(trie.remove(away), Trie.from_catalogue(catalogue_of(stays), END))


def test_update_errors():
    trie = Trie.from_catalogue(catalogue_of({1: (1,), 2: (2,)}), END)
    with pytest.raises(ValueError, match="item 2 is in the trie already"):
        trie.add(catalogue_of({2: (3,)}))
    with pytest.raises(ValueError, match="7 is not in the trie of 2 items"):
        trie.remove([1, 7])
    with pytest.raises(ValueError, match="all 2 items would go"):
        trie.remove([1, 2])
    with pytest.raises(ValueError, match="holds the end-of-turn token 9"):
        Trie.from_catalogue(catalogue_of({1: (1, END)}), END)


def test_files(tmp_path):
    titles = random_titles(0)
    catalogue = catalogue_of(titles)
    trie = Trie.from_catalogue(catalogue, END)
    trie_files.save(trie, tmp_path / "trie.npz")
    assert same(trie_files.load(tmp_path / "trie.npz", catalogue, END), trie)
    assert [path.name for path in tmp_path.iterdir()] == ["trie.npz"]


@pytest.mark.parametrize("change", ["title", "id", "fewer", "swapped"])
def test_a_trie_of_another_catalogue_is_refused(tmp_path, change):
    titles = random_titles(0)
    trie_files.save(Trie.from_catalogue(catalogue_of(titles), END), tmp_path / "trie.npz")
    one, two = list(titles)[:2]
    if change == "title":
        titles[one] = (*titles[one], 0)
    elif change == "id":
        titles[9999] = titles.pop(one)
    elif change == "fewer":
        del titles[one]
    else:
        titles[one], titles[two] = (*titles[two], 1), titles[one]
    with pytest.raises(ValueError, match="another catalogue or tokenizer"):
        trie_files.load(tmp_path / "trie.npz", catalogue_of(titles), END)


def test_the_order_of_the_catalogue_does_not_matter_to_the_fingerprint():
    titles = random_titles(0)
    backwards = dict(reversed(titles.items()))
    assert trie_files.of_catalogue(catalogue_of(titles)) == trie_files.of_catalogue(catalogue_of(backwards))
    assert trie_files.of_trie(Trie.from_catalogue(catalogue_of(titles), END)) == trie_files.of_catalogue(
        catalogue_of(titles)
    )


def test_file_errors(tmp_path):
    catalogue = catalogue_of(random_titles(0))
    trie, path = Trie.from_catalogue(catalogue, END), tmp_path / "trie.npz"
    with pytest.raises(ValueError, match=r"ends in \.npz"):
        trie_files.save(trie, tmp_path / "trie.pt")
    with pytest.raises(FileNotFoundError):
        trie_files.load(path, catalogue, END)
    trie_files.save(trie, path)
    with pytest.raises(ValueError, match="end with token 9, those of this prompt with 8"):
        trie_files.load(path, catalogue, 8)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"nothing"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="not a trie of patchrec_fast, or damaged"):
            trie_files.load(path, catalogue, END)
    np.save(path.with_suffix(".npy"), np.zeros(3))
    path.write_bytes(path.with_suffix(".npy").read_bytes())
    with pytest.raises(ValueError, match=r"trie\.npz: not a trie of patchrec_fast, or damaged"):
        trie_files.load(path, catalogue, END)
    np.savez(path, about=np.array([{"a": 1}], object))
    with pytest.raises(ValueError, match="not a trie of patchrec_fast, or damaged"):
        trie_files.load(path, catalogue, END)


def test_random_damage(tmp_path):
    """Bytes flipped, cut off or written over: an error that names the file, or the very trie."""
    titles = random_titles(0)
    catalogue, path, rng = catalogue_of(titles), tmp_path / "trie.npz", np.random.default_rng(0)
    trie = Trie.from_catalogue(catalogue, END)
    trie_files.save(trie, path)
    whole, refused = path.read_bytes(), 0
    for _ in range(150):
        damaged = bytearray(whole)
        at = int(rng.integers(len(whole)))
        if rng.random() < 0.2:
            del damaged[at:]
        else:
            count = int(rng.integers(1, 9))
            damaged[at : at + count] = rng.bytes(len(damaged[at : at + count]))
        path.write_bytes(damaged)
        try:
            assert same(trie_files.load(path, catalogue, END), trie)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017
            refused += 1
    assert refused > 75


@pytest.mark.parametrize("name", [*TENSORS, "levels", "about", "fingerprint"])
def test_inconsistent_arrays(tmp_path, name):
    """A sound file whose arrays are no trie, or one of another catalogue: values, lengths, dtypes, dimensions."""
    catalogue, path, rng = catalogue_of(random_titles(0)), tmp_path / "trie.npz", np.random.default_rng(0)
    trie = Trie.from_catalogue(catalogue, END)
    trie_files.save(trie, path)
    with np.load(path) as file:
        parts = dict(file)
    array = parts[name]

    def refused(changed):
        np.savez(path, **{**parts, name: changed})
        with pytest.raises(ValueError, match=r"trie\.npz"):
            trie_files.load(path, catalogue, END)

    for odd in (array[:-1], array[:0], np.append(array, array[-1:]), array[None], array.astype(np.float64) + 0.5):
        refused(odd)
    for _ in range(12):
        at, changed = rng.integers(len(array)), array.copy()
        changed[at] += np.array(rng.choice([1, 2, 2**40]), array.dtype)
        refused(changed)
        if len(array) > 1 and array[at] != array[at - 1]:
            changed = array.copy()
            changed[[at, at - 1]] = changed[[at - 1, at]]
            if name != "items" or int(trie.item_first.diff()[trie.leaf_of([array[at]])[0]]) == 1:
                refused(changed)
