# SPDX-License-Identifier: Apache-2.0
"""The profile: rows against the packer, growth, and the files; times are only looked at for being there."""

import csv
import json

import numpy as np
import pytest

import patchrec_fast as pf
from patchrec_fast.evaluation import profile
from patchrec_fast.evaluation.profile import GROWTH, SETTINGS, Profiler, Setting, long_histories, plot, to_csv
from patchrec_fast.models.tiny import tiny_model


@pytest.fixture(scope="module")
def profiler(sample):
    tokenizer = pf.data.sample_tokenizer(sample.titles.values())
    text = "Seen [HISTORY_SEQUENCE]."
    model, cut = tiny_model(sample.titles, tokenizer, instruction=text, hidden=16, layers=1, heads=2)
    catalogue = pf.Catalogue.from_titles(sample.titles, cut)
    return Profiler(model, catalogue, pf.Prompt(cut, instruction=text), k=3)


def test_long_histories(sample):
    lengths = np.diff(sample.offsets)
    found = long_histories(sample, more_than=100)
    assert [len(history) for history in found] == sorted(lengths[lengths > 100].tolist(), reverse=True)
    assert len(long_histories(sample, more_than=100, limit=1)) == 1
    assert found[0].tolist() == sample.items[: sample.offsets[1]].tolist()  # the first user is the longest
    with pytest.raises(ValueError, match="more than 300"):
        long_histories(sample, more_than=300)


def test_the_papers_figure_8():
    """Text of 150 items; item patches of 350 with N = 20; sessions of 20 over all."""
    assert [(setting.policy, setting.max_items) for setting in SETTINGS[:3]] == [
        (pf.Text(), 150),
        (pf.ItemPatches(20), 350),
        (pf.SessionPatches(20), None),
    ]


def test_each_setting_is_packed_as_it_says(profiler, sample):
    histories = long_histories(sample, more_than=100, limit=3)
    found = list(profiler.compare(histories, batch_size=2))
    for setting, each in zip(SETTINGS, found, strict=True):
        packer = pf.Packer(profiler._catalogue, profiler._prompt, setting.policy, setting.max_items)
        assert each.setting == setting.name
        assert each.users == 3
        assert each.rows == len(packer.pack(histories).position_ids) / 3
        assert each.items == np.mean([min(len(history), setting.max_items or 10**6) for history in histories])
        assert min(each.pack_ms, each.prompt_ms, each.decode_ms, each.peak_mib) > 0
        assert each.total_ms == pytest.approx(each.pack_ms + each.prompt_ms + each.decode_ms)


def test_growth(profiler, sample):
    history = long_histories(sample, more_than=100)[0]
    found = list(profiler.grow(history, (1, 40, len(history)), repeats=1))
    assert [(each.setting, each.items) for each in found] == [
        (setting.name, length) for setting in GROWTH for length in (1, 40, len(history))
    ]
    rows = {(each.setting, each.items): each.rows for each in found}
    assert rows["text", 1] == rows["PFT-I", 1] == rows["PFT-S", 1]  # one item is text under all
    assert rows["text", len(history)] > rows["PFT-I", len(history)] > rows["PFT-S", len(history)]


@pytest.mark.parametrize("lengths", [(0,), (5, 1000)])
def test_lengths_that_the_history_has_not(profiler, sample, lengths):
    with pytest.raises(ValueError, match="lengths"):
        next(profiler.grow(sample.items[:20], lengths))


def test_trace(profiler, sample, tmp_path):
    path = tmp_path / "new" / "trace.json"
    profiler.trace(sample.items[:30], path, [Setting("all text", pf.Text())])
    names = {event.get("name") for event in json.loads(path.read_text())["traceEvents"]}
    assert {"all text", "aten::mm"} <= names
    assert [each.name for each in path.parent.iterdir()] == ["trace.json"]


@pytest.fixture
def made_up():
    return [
        profile.Profile(setting, 1, items, 3.0 * items, 0.5, 2.0, 1.5, 100.0, "made up")
        for setting in ("text", "PFT-S")
        for items in (10.0, 20.0)
    ]


def test_csv(made_up):
    rows = list(csv.DictReader(to_csv(made_up).splitlines()))
    assert len(rows) == 4
    assert rows[3]["setting"] == "PFT-S"
    assert (float(rows[3]["rows"]), rows[3]["memory"]) == (60, "made up")


def test_plot(made_up, tmp_path):
    pytest.importorskip("matplotlib")
    plot(made_up, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_without_matplotlib(made_up, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install"):
        plot(made_up, tmp_path / "growth.png")
    assert list(tmp_path.iterdir()) == []
