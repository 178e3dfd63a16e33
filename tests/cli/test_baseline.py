# SPDX-License-Identifier: Apache-2.0
"""`patchrec-fast baseline`: both columns, and a report that the report command reads."""

import json

import pytest

from patchrec_fast import data
from patchrec_fast.baselines import NAMES, Transitions, baseline
from patchrec_fast.cli import baseline as command
from patchrec_fast.cli.main import main
from patchrec_fast.layout import Catalogue
from patchrec_fast.report.inputs import evaluations


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("pyarrow")
    path = tmp_path_factory.mktemp("data")
    data.save(data.generate(users=30, items=60), path)
    return path


def test_the_names_are_the_librarys():
    assert command.NAMES == NAMES


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("sasrec", "gru4rec")])
@pytest.mark.parametrize("recipe", ["paper", "strong"])
def test_each_is_made_by_its_name(name, recipe):
    dataset = data.generate(users=10, items=30)
    ranker = baseline(name, dataset, Catalogue.of_bytes(dataset.titles), recipe=recipe)
    assert len(ranker.recommend([[0, 1]], 5).items[0]) == 5


def test_both_columns(folder, tmp_path, capsys):
    flags = ["baseline", "transitions", "--data", str(folder), "--out", str(tmp_path), "--k", "5", "--device", "cpu"]
    assert main(flags) == 0
    assert "transitions, strong, unseen" in capsys.readouterr().out
    dataset = data.load(folder)
    ranker = Transitions(dataset, Catalogue.of_bytes(dataset.titles))
    samples = dataset.split("test", max_items=None)
    allowed, unseen = evaluations([tmp_path])
    assert allowed.ranks == ranker.rank(*samples).tolist()
    assert unseen.ranks == ranker.rank(*samples, exclude_seen=True).tolist()
    assert main([*flags, "--json"]) == 0  # again
    assert json.loads(capsys.readouterr().out)["report"]["ks"] == [5]
    assert main([*flags, "--seed", "1"]) == 1
    assert "--out" in capsys.readouterr().err


def test_a_network(folder, tmp_path, capsys, monkeypatch):
    from patchrec_fast.baselines import recipes, training

    small = recipes.Recipe("softmax", width=8, layers=1, batch=99, rounds=2, learning_rate=0.01, length=9)
    monkeypatch.setitem(training.RECIPES, "gru4rec", {"strong": small})
    flags = ["--data", str(folder), "--out", str(tmp_path), "--limit", "7", "--seed", "2", "--device", "cpu"]
    assert main(["baseline", "gru4rec", *flags]) == 0
    found = evaluations([tmp_path])
    assert [each.name for each in found] == ["gru4rec, strong, seed 2", "gru4rec, strong, seed 2, unseen"]
    assert len(found[0].ranks) == 7
    assert main(["baseline", "sasrec", *flags]) == 1
    assert "holds the report of" in capsys.readouterr().err
