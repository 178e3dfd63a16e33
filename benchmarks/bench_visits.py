# SPDX-License-Identifier: Apache-2.0
"""A user who comes back: visits of a few new items each, with the prompt of the last visit kept and without.

The same recommender reads whole histories of ML-1M's longest users, one user at a time, whose newest items come in
visits; a cell is a third of the users, by length. Nothing is recorded unless both give the same titles. The model is
random, of 4 layers and width 256; beams are scored among title tokens, the cheap way, so that the prompt is not lost
beside the decoding.
"""

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from patchrec_fast import ItemPatches, Packer, Recommender, SessionPatches
from patchrec_fast.evaluation.profile import long_histories
from patchrec_fast.layout import Policy
from patchrec_fast.recommend import KVCache, Recommendations

from . import harness
from .bench_decode import CATALOGUE, one_thread, tiny
from .conftest import Recorder, Settings
from .results import Row

KEPT, FRESH = "kept prompts", "fresh call"
VISITS, NEW, TITLES = 20, 5, 20
THIRDS = ("shortest", "middle", "longest")
POLICIES: dict[str, Policy] = {
    'SessionPatches(20, anchor="oldest")': SessionPatches(20, anchor="oldest"),
    "SessionPatches(20)": SessionPatches(20),
    "ItemPatches(20, step=20)": ItemPatches(20, step=20),
    "ItemPatches(20)": ItemPatches(20),
}


@pytest.mark.parametrize("third", THIRDS)
@pytest.mark.parametrize("policy", POLICIES)
def test_visits(policy: str, third: str, settings: Settings, record: Recorder, benchmark: BenchmarkFixture) -> None:
    source = settings.source("ml-1m")
    users, visits = (3, 3) if settings.quick else (58, VISITS)
    by_length = sorted(long_histories(source.dataset, limit=users), key=len)
    cuts = np.linspace(0, len(by_length), len(THIRDS) + 1).astype(int)
    begin, end = cuts[THIRDS.index(third) :][:2]
    histories = by_length[begin:end]
    packer = Packer(source.catalogue, source.prompt, POLICIES[policy])
    rec, cache = Recommender(tiny(source.prompt.num_embeddings, settings.quick), packer), KVCache(8 << 30)
    seconds: dict[str, list[float]] = {KEPT: [], FRESH: []}
    rows = read = least = contended = 0
    lengths = np.diff(source.catalogue.offsets)

    def history_of(user: int, number: int) -> np.ndarray:
        return histories[user][: len(histories[user]) - NEW * (visits - number)]

    def visit(user: int, number: int, kept: bool) -> tuple[float, bool, Recommendations]:
        history, found = history_of(user, number), []

        def call(round_: int) -> None:
            found.append(rec.recommend([history], TITLES, normalize=CATALOGUE, users=[user] if kept else None))

        if not kept:
            return *harness.sample(call, 0), found[-1]
        spent, lost = harness.once(call, 0)  # a second call would find the visit itself
        return spent, lost > harness.LOST_SHARE, found[-1]

    with one_thread(), rec.engine(cache):
        for user in range(len(histories)):
            visit(user, 0, kept=True)  # the first time there is nothing to find
            for number in range(1, visits + 1):
                answers = []
                for kept in np.random.default_rng(number).permutation([True, False]):
                    spent, disturbed, found = visit(user, number, bool(kept))
                    answers.append(found.items.tolist())
                    seconds[KEPT if kept else FRESH].append(spent)
                    contended += disturbed
                    if kept:
                        rows, read = rows + found.rows, read + found.rows_read
                assert answers[0] == answers[1], "other titles than a fresh call's"
                new = source.catalogue.index(history_of(user, number)[-NEW:])
                least += int(lengths[new].sum()) + NEW + len(source.prompt.suffix)  # with a separator each
            cache.clear()
    timings = [harness.Timing(name, np.array(values), contended) for name, values in seconds.items()]
    ratios = harness.ratios(timings, [FRESH])
    measured: list[Row] = [
        {
            "contestant": timing.name,
            "median_ms": round(timing.milliseconds(), 2),
            "p20_ms": round(timing.milliseconds(0.2), 2),
            "p80_ms": round(timing.milliseconds(0.8), 2),
            "rounds": len(timing.seconds),
            "contended": timing.contended,
            "ratio": round(ratios[timing.name], 2),
            "reused_share": round(1 - read / rows, 4) if timing.name == KEPT else 0.0,
            "old_share": round(1 - least / rows, 4),
        }
        for timing in timings
    ]
    cell: Row = {
        "data": source.label,
        "policy": policy,
        "users": len(histories),
        "items": round(sum(map(len, histories)) / len(histories)),
        "rows": rows // (len(histories) * visits),
    }
    record("visits", measured, cell)
    benchmark.group = "users who return"
    benchmark.pedantic(visit, args=(0, visits, False), rounds=1)
