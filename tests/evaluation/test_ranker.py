# SPDX-License-Identifier: Apache-2.0
"""`evaluate` takes any ranker: one that a user writes, against metrics by brute force."""

import contextlib
import math
from dataclasses import dataclass

import numpy as np
import pytest

import patchrec_fast as pf
from patchrec_fast.layout.histories import flatten
from patchrec_fast.recommend import Ranked, Ranker
from tests.recommend.catalogues import catalogue_of


class Nearest:
    """Items in the order of their distance from the newest one, the larger id first."""

    def __init__(self, items):
        self.items = items

    def _order(self, histories):
        flat, offsets = flatten(histories)
        return np.stack(
            [sorted(range(self.items), key=lambda i: (abs(i - last), -i)) for last in flat[offsets[1:] - 1]]
        )

    def rank(self, histories, targets):
        return (self._order(histories) == np.asarray(targets)[:, None]).argmax(1) + 1

    def recommend(self, histories, k):
        return Ranked(self._order(histories)[:, :k])


@pytest.fixture
def test_split(sample):
    return sample.split("test", max_items=50)


def brute_force(samples, answer, ks, items=300):
    """HR and NDCG by the words of their definitions."""
    (flat, offsets), targets = samples
    found = {f"{metric}@{k}": 0.0 for k in ks for metric in ("HR", "NDCG")}
    for place, target in enumerate(targets):
        last = flat[offsets[place + 1] - 1]
        order = sorted(range(items), key=lambda item: (abs(item - last), -item))
        hits = [rank for rank, item in enumerate(order, 1) if answer(item) == answer(target)]
        for k in ks:
            if hits[0] <= k:
                found[f"HR@{k}"] += 1 / len(targets)
                found[f"NDCG@{k}"] += 1 / math.log2(hits[0] + 1) / len(targets)
    return found


@pytest.mark.parametrize("by", ["recommend", "rank"])
def test_a_ranker_that_a_user_writes(test_split, by):
    ranker = Nearest(300)
    assert isinstance(ranker, Ranker)
    report = pf.evaluate(ranker, test_split, (1, 5, 20, 150), by=by, batch_size=7, progress=False)
    found = {name: value for name, (value, _, _) in report.metrics().items()}
    assert found == pytest.approx(brute_force(test_split, int, (1, 5, 20, 150)))
    assert 0 < found["HR@20"] < found["HR@150"] < 1
    assert (report.name, report.rows, report.shared_titles) == ("Nearest", None, 0)
    assert list(report.seconds) == [by]
    assert "rows" not in str(report)


def test_a_catalogue_says_which_items_are_one(test_split, packer):
    """Items 5 and 7 share a title."""
    histories, targets = [[5], [6, 3], *np.split(test_split[0][0], test_split[0][1][1:-1])], [7, 7, *test_split[1]]
    ranker = Nearest(300)
    answer = dict(enumerate(packer.catalogue.answers.tolist()))
    flat = np.concatenate(histories), np.cumsum([0, *map(len, histories)])
    report = pf.evaluate(ranker, (histories, targets), (1, 5), catalogue=packer.catalogue)
    expected = brute_force((flat, targets), answer.__getitem__, (1, 5))
    assert {name: value for name, (value, _, _) in report.metrics().items()} == pytest.approx(expected)
    assert report.ranks[:2] == [1, 4]
    ranker.catalogue = packer.catalogue
    assert pf.evaluate(ranker, (histories, targets), (1, 5)).ranks == report.ranks
    assert pf.evaluate(Nearest(300), (histories, targets), (1, 5)).ranks[:2] == [4, -1]


@dataclass(frozen=True, eq=False)
class Costed(Ranked):
    rows: int
    seconds: dict[str, float]


def test_what_else_a_ranker_has_is_used(test_split, tmp_path):
    class More(Nearest):
        def __init__(self, factor):
            super().__init__(300)
            self.factor, self.inside, self.sizes = factor, False, []

        @contextlib.contextmanager
        def engine(self):
            self.inside = True
            yield
            self.inside = False

        def settings(self):
            return {"policy": "none"}

        def fingerprint(self):
            return {"factor": self.factor}

        def recommend(self, histories, k, *, batch_size, factor=1):
            assert self.inside
            self.sizes.append(batch_size)
            return Costed(super().recommend(histories, k).items, 3 * batch_size, {"think": 2.0 * batch_size})

    ranker = More(1)
    report = pf.evaluate(ranker, test_split, batch_size=7, out=tmp_path, factor=2)
    count = len(test_split.targets)
    assert ranker.sizes == [7] * (count // 7) + [count % 7] * bool(count % 7)
    assert not ranker.inside
    assert (report.rows, report.seconds) == (3.0, {"think": pytest.approx(2.0)})
    assert report.name == "More, factor=2"
    assert report.settings["policy"] == "none"
    again = More(1)
    assert pf.evaluate(again, test_split, out=tmp_path, factor=2).ranks == report.ranks
    assert again.sizes == []
    for other, options, what in (
        (More(3), {"factor": 2}, "factor"),
        (More(1), {"factor": 2, "by": "rank"}, "by 'recommend' and not 'rank'"),
        (More(1), {"factor": 3}, "factor"),
    ):
        with pytest.raises(ValueError, match=f"another run.*{what}"):
            pf.evaluate(other, test_split, out=tmp_path, **options)


def test_another_catalogue_is_another_run(test_split, clockwork, tmp_path):
    """The same ids, and other items that are one."""
    other = catalogue_of({item: (item // 2,) for item in range(300)})
    pf.evaluate(clockwork(), test_split, out=tmp_path)
    with pytest.raises(ValueError, match=r"another run.*answers"):
        pf.evaluate(clockwork(), test_split, out=tmp_path, catalogue=other)


class Wrong(Nearest):
    """Gives what it is told to."""

    def __init__(self, made):
        super().__init__(300)
        self.made = made

    def rank(self, histories, targets):
        return self.made

    def recommend(self, histories, k):
        return Ranked(self.made)


@pytest.mark.parametrize(
    ("ranker", "options", "error", "message"),
    [
        (object(), {}, TypeError, r"ranker: expected rank\(histories, targets\) and recommend.*got object"),
        (Nearest(300), {"out": "unused"}, TypeError, r"out: Nearest has no fingerprint\(\)"),
        (Nearest(300), {"by": "guess"}, ValueError, "by must be 'recommend' or 'rank', got 'guess'"),
        (Nearest(300), {"ks": (10_001,)}, ValueError, "ks: expected at most 10000, got 10001$"),
        (Nearest(300), {"colour": 3}, TypeError, "colour"),
        (Wrong(np.ones((1, 3), int)), {}, ValueError, r"Wrong.recommend gave int64 of shape \(1, 3\).*\(1, 20\)"),
        (Wrong(np.ones((1, 20))), {}, ValueError, r"gave float64 of shape \(1, 20\), expected integers"),
        (Wrong([1, 2]), {"by": "rank"}, ValueError, r"Wrong.rank gave int64 of shape \(2,\)"),
        (Wrong([0]), {"by": "rank"}, ValueError, "expected -1 for a miss or a rank from 1, got 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_ranker(ranker, options, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        pf.evaluate(ranker, ([[1]], [2]), **options)
    assert not list(tmp_path.iterdir())
