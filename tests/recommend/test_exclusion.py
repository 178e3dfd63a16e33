# SPDX-License-Identifier: Apache-2.0
"""What a call allows and denies: nothing else is answered, and nothing is lost by it. Random catalogues against brute
force are in test_catalogues."""

import numpy as np
import pytest
import torch

import patchrec_fast as pf
from patchrec_fast.recommend import Trie
from patchrec_fast.recommend.exclusion import Exclusion, lost_leaves

METHODS = ["beam", "exact", "diverse"]


@pytest.mark.parametrize("seed", range(6))
def test_the_best_of_what_is_left(recommender, histories, seed):
    """All titles scored, filtered and sorted, in the order of a search that never heard of the others."""
    rng = np.random.default_rng(seed)
    ids, some = recommender.catalogue.item_ids, histories[:3]
    allow, deny = rng.choice(ids, 60, replace=False), rng.choice(ids, 100)
    table = recommender.scores(some)
    left = np.isin(ids, allow) & ~np.isin(ids, deny)
    first = np.unique(recommender.catalogue.answers[left], return_index=True)[1]  # of items that share a title
    items, table = ids[left][first], table[:, left][:, first]
    for method, options in (("exact", {}), ("beam", {"beams": len(ids)})):
        found = recommender.recommend(some, 8, method, allow=allow, deny=deny, **options)
        for user, scores in enumerate(table):
            order = np.argsort(-scores)[:8]
            assert found.items[user].tolist() == items[order].tolist()
            np.testing.assert_allclose(found.log_probs[user], scores[order], atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_few_of_many_are_all_found(recommender, histories, method):
    """By twenty beams, or groups: a filter behind the search would leave some out, or nothing."""
    worst = recommender.catalogue.item_ids[np.argsort(recommender.scores(histories[:1])[0])[:5]]
    found = recommender.recommend(histories[:1], 20, method, allow=worst).items[0]
    assert set(found.tolist()) - {-1} <= set(worst.tolist())
    if method != "diverse":
        assert sorted(found.tolist()) == [-1] * 15 + sorted(worst.tolist())


def test_a_shared_title_goes_with_all_its_items(make_model, sample):
    titles = {1: "Jaws", 2: "Jaws", 3: "Jaws 2", 4: "Alien", 5: "Jaws"}
    catalogue = pf.Catalogue.from_titles(titles, sample.tokenizer)
    rec = pf.Recommender(make_model(), pf.Packer(catalogue, sample.prompt, pf.Text()))

    def found(**options):
        return [sorted(set(items) - {-1}) for items in rec.recommend([[1], [4]], 4, "exact", **options).items.tolist()]

    assert found(deny=[1]) == [[2, 3, 4]] * 2
    assert found(deny=[1, 2]) == [[3, 4, 5]] * 2
    assert found(deny={1, 2, 5}) == [[3, 4]] * 2
    assert found(allow=[5, 4, 4]) == [[4, 5]] * 2
    assert found(allow=[1, 2, 4], deny=[2]) == [[1, 4]] * 2
    assert found(allow=[1, 2, 4], deny=[2], exclude_seen=True) == [[4], [1]]
    assert found(allow=[1], exclude_seen=True) == [[], [1]]
    assert found(deny=[]) == found()


def test_an_engine_serves_other_exclusions(make_model, packer, histories):
    """One after another, for more users and fewer."""
    rec, ids = pf.Recommender(make_model(), packer), packer.catalogue.item_ids
    asked = [{"deny": ids[:200]}, {"allow": ids[:7], "exclude_seen": True}, {}, {"exclude_seen": True}, {"deny": [7]}]
    expected = [rec.recommend(histories, 5, **options).items for options in asked]
    with rec.engine():
        for options, items in list(zip(asked, expected, strict=True)) * 2:
            np.testing.assert_array_equal(rec.recommend(histories, 5, **options).items, items)
            np.testing.assert_array_equal(rec.recommend(histories[:2], 5, **options).items, items[:2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allow": []}, "allow: none of the 303 items is left"),
        ({"allow": [1, 2], "deny": [2, 1, 3]}, "allow, deny: none of the 303 items is left"),
        ({"deny": range(1000)}, "deny: 300, 301, 302, 303, 304 are not in the catalogue"),
        ({"allow": [4, 12345]}, "allow: 12345 is not in the catalogue"),
        ({"deny": [-1]}, "deny: expected no negative number"),
    ],
)
def test_errors(recommender, histories, options, message):
    with pytest.raises(ValueError, match=message):
        recommender.recommend(histories, **options)
    with pytest.raises(TypeError, match="deny: expected integers"):
        recommender.recommend(histories, deny=["Jaws"])


@pytest.mark.parametrize("seed", range(5))
def test_closed_nodes_are_those_without_a_title_left(packer, histories, seed):
    rng = np.random.default_rng(seed)
    trie = Trie.from_catalogue(packer.catalogue, packer.prompt.end_of_turn)
    allow = rng.choice(packer.catalogue.item_ids, 250, replace=False)
    exclusion = Exclusion(trie, seen=True, allow=allow)
    users = pf.ragged.Ragged(*pf.layout.histories.flatten(histories))
    closed = exclusion.closed(users, trie)
    parent, items = trie.parent.tolist(), dict(zip(trie.items.tolist(), trie.leaves_of_items().tolist(), strict=True))
    for user, history in enumerate(histories):
        opened = {0}
        for item in set(allow.tolist()) - set(history):
            node = items[item]
            while node:
                opened.add(node)
                node = parent[node]
        assert set(np.flatnonzero(~closed[user].numpy()).tolist()) == opened


def test_lost_leaves_are_counted(packer):
    trie = Trie.from_catalogue(packer.catalogue, packer.prompt.end_of_turn)
    leaf = trie.is_leaf.nonzero().squeeze(1)
    user = torch.ones_like(leaf)
    none, every = lost_leaves(trie, 2, user, leaf)
    assert not none.any()
    assert torch.equal(every[1:].long(), trie.leaves[1:])
