# SPDX-License-Identifier: Apache-2.0
"""What an engine keeps of users who return changes no answer.

`PATCHREC_FAST_TEST_VISITS=1000` makes so many visits; the default takes seconds.
"""

import os

import numpy as np
import pytest
import torch

import patchrec_fast as pf
from patchrec_fast.hf.kv_cache import Entry, KeyValues, KVCache
from patchrec_fast.layout.rows import PromptRows, prompt_rows, without

VISITS = int(os.environ.get("PATCHREC_FAST_TEST_VISITS", "27"))
USERS = 6


def bytes_of(model, rows):
    config = model.config
    return rows * config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim * 4


def assert_same(found, expected):
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)


class World:
    """A model, a catalogue and users' histories, all of which change."""

    def __init__(self, make_model, sample, rng, policy):
        self.rng, self.policy, self.sample = rng, policy, sample
        self.model = make_model(num_hidden_layers=2)
        self.titles = {item: title for item, title in sample.dataset.titles.items() if item <= 60}
        self.histories = [self.items(rng.integers(1, 9)) for _ in range(USERS)]
        self.renew()

    def renew(self):
        """A recommender of the catalogue as it is."""
        catalogue = pf.Catalogue.from_titles(self.titles, self.sample.tokenizer)
        self.rec = pf.Recommender(self.model, pf.Packer(catalogue, self.sample.prompt, self.policy, max_items=12))

    def items(self, count):
        return self.rng.choice(list(self.titles), count).tolist()

    def change(self):
        """One that happens between two visits, if any."""
        kind, user = self.rng.choice(9), self.rng.integers(USERS)
        history = self.histories[user]
        if kind == 0:
            del history[self.rng.integers(len(history)) if len(history) > 1 else slice(0)]
        elif kind == 1:
            history[:] = self.rng.permutation(history).tolist()
        elif kind == 2:
            self.titles[max(self.titles) + 1] = f"New film {len(self.titles)}"
            self.renew()
        elif kind == 3:
            gone = self.rng.choice([item for item in self.titles if item > 30])
            del self.titles[gone]
            self.histories = [[item for item in each if item != gone] or [1] for each in self.histories]
            self.renew()
        elif kind == 4:
            with torch.no_grad():
                self.model.model.layers[1].mlp.up_proj.weight.mul_(1.01)
        elif kind == 5:
            self.model.model.layers[0].self_attn.v_proj.weight.data.mul_(1.01)
        elif kind == 6:
            self.model.to(torch.float64 if self.model.dtype == torch.float32 else torch.float32)


@pytest.mark.parametrize("room", [0.5, 2.5, 100], ids=["none", "two", "all"])
@pytest.mark.parametrize("policy", [pf.Text(), pf.ItemPatches(2), pf.SessionPatches(2)], ids=repr)
def test_random_visits(make_model, sample, policy, room):
    """`room` is how many prompts may be kept."""
    rng = np.random.default_rng(int(10 * room) + len(repr(policy)))
    world = World(make_model, sample, rng, policy)
    longest = max(len(rows.item_offsets) for rows in prompt_rows(world.rec.packer.pack([world.items(12)] * 8)))
    cache = KVCache(int(room * bytes_of(world.model, longest)))
    for _ in range(-(-VISITS // 9)):
        world.change()
        with world.rec.engine(cache):
            for _ in range(3):
                users = rng.integers(USERS, size=rng.integers(1, 4))
                for user in set(users.tolist()):
                    world.histories[user] += world.items(rng.integers(3))
                histories = [world.histories[user][: None if rng.random() < 0.8 else -1] or [1] for user in users]
                method = rng.choice(["beam", "exact"])
                found = world.rec.recommend(histories, 3, method, users=users, batch_size=rng.integers(1, 4))
                fresh = pf.Recommender(world.model, world.rec.packer).recommend(histories, 3, method)
                assert_same(found, fresh)
                assert found.rows == fresh.rows
                assert 0 < found.rows_read <= fresh.rows_read
                assert cache.bytes <= cache.max_bytes
    assert (len(cache) > 0) == (room > 1)
    assert cache.rows_reused > 0


@pytest.mark.parametrize("policy", [pf.Text(), pf.ItemPatches(0)], ids=repr)
def test_only_what_is_new_is_read(make_model, sample, policy):
    """Items are appended: the rows behind the common beginning are theirs and the suffix."""
    packer = pf.Packer(sample.catalogue, sample.prompt, policy)
    rec, cache = pf.Recommender(make_model(), packer), KVCache(1 << 30)
    history = [1, 5, 9]
    with rec.engine(cache):
        first = rec.recommend([history], 3, users=["a"])
        second = rec.recommend([[*history, 7, 8]], 3, users=["a"])
        third = rec.recommend([[*history, 7, 8]], 3, users=["a"])
        other = rec.recommend([history], 3, users=["b"])
    assert first.rows_read == first.rows
    assert second.rows_read == second.rows - (first.rows - len(packer.prompt.suffix))
    assert third.rows_read == 1
    assert other.rows_read == other.rows - len(packer.prompt.prefix)
    assert cache.rows_read == sum(call.rows_read for call in (first, second, third, other))
    assert cache.rows_reused + cache.rows_read == sum(call.rows for call in (first, second, third, other))
    assert cache.bytes == bytes_of(rec.model, second.rows + other.rows)


def test_scores_and_the_next_recommender(recommender, histories):
    """What one call keeps serves another kind of call, and another recommender of the model."""
    cache, users = KVCache(1 << 30), list("abcde")
    with recommender.engine(cache):
        recommender.recommend(histories, 3, users=users)
    other = pf.Recommender(recommender.model, recommender.packer)
    with other.engine(cache):
        before = cache.rows_read
        table = other.scores(histories, users=users)
    assert cache.rows_read - before == len(histories)
    np.testing.assert_allclose(table, recommender.scores(histories), atol=1e-4)


def test_autocast_has_prompts_of_its_own(make_model, packer, histories):
    rec, cache, users = pf.Recommender(make_model(), packer), KVCache(1 << 30), list("abcde")
    with rec.engine(cache):
        plain = rec.recommend(histories, 3, users=users)
        with torch.autocast("cpu", torch.bfloat16):
            half = rec.recommend(histories, 3, users=users)
        again = rec.recommend(histories, 3, users=users)
    with torch.autocast("cpu", torch.bfloat16):
        expected = pf.Recommender(rec.model, packer).recommend(histories, 3)
    assert half.rows_read == expected.rows_read
    np.testing.assert_array_equal(half.scores, expected.scores)
    assert_same(again, plain)
    assert again.rows_read == len(histories)


def test_models_that_rotate_by_length_keep_nothing(make_model, packer, histories):
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    rec = pf.Recommender(make_model(rope_parameters=rope), packer)
    expected, cache = rec.recommend(histories, 3), KVCache(1 << 30)
    with rec.engine(cache):
        for _ in range(2):
            assert_same(rec.recommend(histories, 3, users=range(5)), expected)
    assert not len(cache)


def test_errors(recommender, histories):
    cache = KVCache(1 << 20)
    with pytest.raises(ValueError, match=r"users: nobody keeps .* rec.engine"):
        recommender.recommend(histories, 3, users=range(5))
    with recommender.engine(), pytest.raises(ValueError, match="users: nobody keeps"):
        recommender.scores(histories, users=range(5))
    with pytest.raises(TypeError, match="cache: expected a KVCache, got int"), recommender.engine(1 << 20):
        pass
    with pytest.raises(ValueError, match="host_bytes"), recommender.engine(KVCache(1, 1)):
        pass
    with recommender.engine(cache):
        with recommender.engine():
            recommender.recommend(histories[:1], 3, users=["a"])
        with pytest.raises(ValueError, match="another cache"), recommender.engine(KVCache(1)):
            pass
        with pytest.raises(ValueError, match="users: got 2 for 5 histories"):
            recommender.recommend(histories, 3, users=range(2))
        with pytest.raises(TypeError, match=r"users: expected ids .* got \[1\]"):
            recommender.recommend(histories[:1], 3, users=[[1]])
    with pytest.raises(ValueError, match="max_bytes: expected at least 0, got -1"):
        KVCache(-1)
    with pytest.raises(TypeError, match="max_bytes"):
        KVCache(1.5)


class TestKVCache:
    def test_against_a_list(self):
        """Random puts, gets and drops beside the two bounds, both in whole prompts of one size or two."""
        rng, cpu = np.random.default_rng(0), torch.device("cpu")
        for _ in range(30):
            near_room, far_room = (int(room) for room in rng.integers(0, 6, 2))
            cache = KVCache(8 * near_room, 8 * far_room)
            near, far, sizes = [], [], {}  # keys, the least recently used first

            def put(key, size, near=near, far=far, sizes=sizes, near_room=near_room, far_room=far_room):
                for kept in (near, far):
                    if key in kept:
                        kept.remove(key)
                sizes[key] = size
                (near if size <= near_room else far).append(key)
                while sum(sizes[each] for each in near) > near_room:
                    if sizes[near[0]] <= far_room:
                        far.append(near[0])
                    del near[0]
                while sum(sizes[each] for each in far) > far_room:
                    del far[0 if sizes[far[-1]] <= far_room else -1]

            for _ in range(100):
                key, size = int(rng.integers(8)), int(rng.integers(1, 4))
                if rng.random() < 0.6:
                    x = torch.full((size, 1, 1), float(key))
                    cache.put(key, Entry(PromptRows(None, None, None), KeyValues({0: (x, x)})))
                    put(key, size)
                elif rng.random() < 0.8:
                    kept = cache.get(key, cpu)
                    assert (kept is not None) == (key in near or key in far)
                    if kept is not None:
                        assert kept.rows.layers[0][0][0] == key
                        put(key, sizes[key])
                else:
                    cache.drop(key)
                    for kept in (near, far):
                        if key in kept:
                            kept.remove(key)
                assert [*cache._on_device] == near
                assert [*cache._on_host] == far
                assert cache.bytes == 8 * sum(sizes[each] for each in near)
                assert cache.bytes_on_host == 8 * sum(sizes[each] for each in far)


class TestRows:
    def test_common(self, packer):
        """Against a loop over rows."""
        rng = np.random.default_rng(1)
        for _ in range(200):
            one = rng.integers(1, 300, rng.integers(1, 14)).tolist()
            other = one[: rng.integers(len(one) + 1)] + rng.integers(1, 300, rng.integers(1, 5)).tolist()
            first, second = prompt_rows(packer.pack([one, other]))
            a, b = (as_lists(rows) for rows in (first, second))
            common = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            assert first.common(second) == second.common(first) == common

    def test_without(self, packer):
        rng = np.random.default_rng(2)
        for _ in range(50):
            histories = [rng.integers(1, 300, rng.integers(1, 14)).tolist() for _ in range(4)]
            whole = packer.pack(histories)
            rows = [int(rng.integers(length)) for length in whole.cu_seqlens.diff()]
            part = without(whole, rows)
            found = [row for each in prompt_rows_of(part) for row in each]
            assert found == [
                row for n, each in zip(rows, prompt_rows(whole), strict=True) for row in as_lists(each)[n:]
            ]
            assert part.position_ids.tolist() == [
                place
                for n, length in zip(rows, whole.cu_seqlens.diff().tolist(), strict=True)
                for place in range(n, length)
            ]
            assert part.most_rows == part.user_offsets.diff().max()


def as_lists(rows):
    """Each row as a list of its items' tokens."""
    items = [rows.ids[a:b].tolist() for a, b in zip(rows.token_offsets[:-1], rows.token_offsets[1:], strict=True)]
    return [items[a:b] for a, b in zip(rows.item_offsets[:-1], rows.item_offsets[1:], strict=True)]


def prompt_rows_of(batch):
    """Of a batch that has not all of its prompts' rows."""
    flat = as_lists(PromptRows(batch.ids.numpy(), *(part.numpy() for part in batch.offsets)))
    return [flat[a:b] for a, b in zip(batch.user_offsets[:-1], batch.user_offsets[1:], strict=True)]
