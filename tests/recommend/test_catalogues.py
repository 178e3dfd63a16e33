# SPDX-License-Identifier: Apache-2.0
"""Random catalogues of every shape, decoded and scored, against brute force in float64 on plain `input_ids`.

`PATCHREC_FAST_TEST_CATALOGUES` says how many, and `PATCHREC_FAST_TEST_SEED` which is the first.
"""

import copy
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import patchrec_fast as pf
from patchrec_fast.recommend import Trie, engine
from tests.recommend import catalogues, decoders

COUNT = int(os.environ.get("PATCHREC_FAST_TEST_CATALOGUES", "24"))
FIRST = int(os.environ.get("PATCHREC_FAST_TEST_SEED", "0"))
NEAR = 1e-4  # float32's logits, summed along a title


@pytest.fixture(scope="module")
def world(sample, make_model):
    """A model of one layer whose weights are drawn anew for each catalogue, and its double."""
    prompt = pf.Prompt(sample.tokenizer, instruction="[HISTORY_SEQUENCE]?")
    model = make_model(num_hidden_layers=1, hidden_size=16, intermediate_size=16, num_attention_heads=2, head_dim=8)
    special = {prompt.end_of_turn, *prompt.prefix.tolist(), *prompt.suffix.tolist(), prompt.separator}
    tokens = [token for token in range(prompt.num_embeddings) if token not in special]
    return SimpleNamespace(prompt=prompt, model=model, double=copy.deepcopy(model).double(), tokens=tokens)


def renew(world, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for mine, theirs in zip(world.model.parameters(), world.double.parameters(), strict=True):
            if mine.dim() > 1:
                mine.normal_(0, 0.6, generator=generator)
            theirs.copy_(mine)


class Brute:
    """One user's titles, each read whole by a plain call."""

    def __init__(self, world, packer, history, normalize, exclude_seen, allow=None, deny=None):
        self.end, names = packer.prompt.end_of_turn, decoders.titles(packer)
        out = {*(history if exclude_seen else ()), *(deny or ())}
        out |= set() if allow is None else {*packer.catalogue.item_ids.tolist()} - {*allow}
        self.item = {title: [i for i in items if i not in out][:1] for title, items in names.items()}
        self.item = {title: items[0] for title, items in self.item.items() if items}
        self.log_probs = self._read(world.double, packer.pack([history]).ids.long(), list(names), normalize)
        self.allowed = {}
        for title in self.item:
            for place, token in enumerate(title):
                self.allowed.setdefault(title[:place], set()).add(token)
        self.allowed = {beginning: sorted(tokens) for beginning, tokens in self.allowed.items()}
        self.score = {title: self.title(title) for title in names}

    @torch.no_grad()
    def _read(self, model, prompt, names, normalize):
        """beginning -> (V,) log-probabilities after it."""
        longest = max(map(len, names))
        padded = torch.tensor([[*title, *[self.end] * (longest - len(title))] for title in names])
        logits = model(torch.cat([prompt.expand(len(names), -1), padded], 1), use_cache=False).logits
        logits = logits[:, len(prompt) - 1 :]  # of what follows the prompt, and each token
        found, follows = {}, {}
        for row, title in enumerate(names):
            for place in range(len(title)):
                found[title[:place]] = logits[row, place]
                follows.setdefault(title[:place], set()).add(title[place])
        used = sorted({token for title in names for token in title})
        for beginning, row in found.items():
            share = {"vocab": slice(None), "catalogue": used, "children": sorted(follows[beginning])}[normalize]
            found[beginning] = row - row[share].logsumexp(0)
        return found

    def title(self, title):
        return sum(float(self.log_probs[title[:place]][token]) for place, token in enumerate(title))

    def best(self):
        """(score, item) of each open title, best first."""
        return sorted(((self.score[title], item) for title, item in self.item.items()), reverse=True)

    def beams(self, k, beams):
        """The textbook's beam search: 2 * beams continuations looked at, those that end among the first are answers."""
        live, done = [(0.0, ())], []
        while live:
            found = [
                (score + float(self.log_probs[text][token]), (*text, token))
                for score, text in live
                for token in self.allowed.get(text, [])
            ]
            found = sorted(found, reverse=True)[: 2 * beams]
            done += [pair for pair in found[:beams] if pair[1][-1] == self.end]
            done = sorted(done, reverse=True)[:beams]
            bar = done[k - 1][0] if len(done) >= k else -np.inf
            live = [pair for pair in found if pair[1][-1] != self.end and pair[0] > bar][:beams]
        return [(score, self.item[text]) for score, text in done[:k]]

    def groups(self, k):
        if not self.item:
            return []
        found = decoders.group_beams(self.log_probs.__getitem__, self.allowed, self.end, k, 0.8)
        return [(score, self.item[title]) for score, title in found]


def assert_answers(found, user, expected, k):
    """These scores and items, and -1 behind them; neighbours within rounding may change places."""
    items, scores = found.items[user].tolist(), found.scores[user]
    count = min(k, len(expected))
    wanted = np.array([score for score, _ in expected[:count]])
    np.testing.assert_allclose(scores[:count], wanted, atol=NEAR, rtol=1e-6)
    assert items[count:] == [-1] * (k - count)
    assert np.isneginf(scores[count:]).all()
    for item, score in zip(items[:count], wanted, strict=True):
        assert item in {each for other, each in expected if abs(other - score) <= 2 * NEAR}


def some_of(ids, rng):
    """What a call may allow and deny, or nothing of it; something is left."""
    kept = rng.permutation(ids)[: rng.integers(1, len(ids) + 1)].tolist()
    allow, deny = kept if rng.integers(2) else None, [each for each in ids.tolist() if each not in kept[:2]]
    return {
        "allow": allow,
        "deny": rng.permutation(deny)[: rng.integers(len(ids))].tolist() if rng.integers(2) else None,
    }


def assert_right(world, rec, rng, monkeypatch):
    catalogue, packer = rec.packer.catalogue, rec.packer
    histories = [rng.choice(catalogue.item_ids, rng.integers(1, 4)).tolist() for _ in range(2)]
    normalize, exclude_seen = rng.choice(["vocab", "catalogue", "children"]), bool(rng.integers(2))
    options = {"normalize": str(normalize), "exclude_seen": exclude_seen, **some_of(catalogue.item_ids, rng)}
    brutes = [Brute(world, packer, history, **options) for history in histories]
    titles = len(brutes[0].score)
    k = int(rng.integers(1, titles + 3))
    few = int(rng.integers(1, min(titles, 4) + 1))
    with monkeypatch.context() as patch:
        if rng.integers(2):  # calls of few shapes, as on a GPU
            patch.setattr(engine, "_why_not_static", lambda model, device: None)
        every = rec.recommend(histories, k=k, beams=max(k, titles), **options)
        beam = rec.recommend(histories, k=few, beams=few, **options)
    exact = rec.recommend(histories, k=k, method="exact", **options)
    diverse = rec.recommend(histories, k=few, beams=few, method="diverse", **options)
    table = rec.scores(histories, normalize=options["normalize"])
    asked = rng.choice(catalogue.item_ids, 2)
    ranks = rec.rank(histories, asked, normalize=options["normalize"])
    title_of = {item: title for title, items in decoders.titles(packer).items() for item in items}
    for user, brute in enumerate(brutes):
        assert_answers(every, user, brute.best(), k)
        assert_answers(exact, user, brute.best(), k)
        assert_answers(beam, user, brute.beams(few, few), few)
        assert_answers(diverse, user, brute.groups(few), few)
        scores = [brute.score[title_of[item]] for item in catalogue.item_ids.tolist()]
        np.testing.assert_allclose(table[user], scores, atol=NEAR, rtol=1e-6)
        own, every_score = brute.score[title_of[int(asked[user])]], np.array(list(brute.score.values()))
        assert (every_score > own + NEAR).sum() + 1 <= ranks[user] <= (every_score > own - NEAR).sum()
        for found in (every, exact, beam, diverse):
            assert not (exclude_seen and set(found.items[user].tolist()) & set(histories[user]))


@pytest.mark.parametrize("seed", range(FIRST, FIRST + COUNT))
def test_against_brute_force(world, monkeypatch, seed):
    """As built, and after items have come and gone."""
    rng = np.random.default_rng(seed)
    renew(world, seed)
    titles = catalogues.random_titles(seed, world.tokens)

    def recommender(titles, trie=None):
        catalogue = catalogues.catalogue_of(titles)
        return pf.Recommender(world.model, pf.Packer(catalogue, world.prompt, pf.Text()), trie)

    rec = recommender(titles)
    assert_right(world, rec, rng, monkeypatch)

    more = {item + 1: title for item, title in catalogues.random_titles(seed + 3, world.tokens).items()}
    more = {item: title for item, title in more.items() if item not in titles}
    trie, now = rec.trie, dict(titles)
    if more:
        trie, now = trie.add(catalogues.catalogue_of(more)), now | more
    gone = rng.permutation(list(now))[: rng.integers(0, len(now))].tolist()
    if gone:
        trie = trie.remove(gone)
    now = {item: title for item, title in now.items() if item not in gone}
    assert_right(world, recommender(now, trie), rng, monkeypatch)
    end = world.prompt.end_of_turn
    built = Trie.from_catalogue(catalogues.catalogue_of(now), end)
    assert torch.equal(trie.token, built.token)
    assert torch.equal(trie.items, built.items)
