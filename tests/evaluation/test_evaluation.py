# SPDX-License-Identifier: Apache-2.0
"""`evaluate`: the numbers by hand, resuming after a kill, and reports."""

import json
import math

import numpy as np
import pytest

import patchrec_fast as pf
from patchrec_fast.evaluation import Report
from patchrec_fast.evaluation.report import comparison_table


@pytest.fixture
def test_split(sample):
    return sample.split("test", max_items=50)


def test_by_hand(clockwork):
    """The newest item is 4: 5, 6, 7... are recommended. 7 has the title of 5, so it is found there."""
    histories = [[1, 4], [4], [9, 9, 4], [2, 4]]
    report = pf.evaluate(clockwork(), (histories, [6, 7, 4, 8]), ks=(2, 4))
    assert report.ranks == [2, 1, -1, 4]
    found = {name: value for name, (value, _, _) in report.metrics().items()}
    assert found["HR@2"] == 0.5
    assert found["NDCG@2"] == pytest.approx((1 / math.log2(3) + 1) / 4)
    assert found["HR@4"] == 0.75
    assert found["NDCG@4"] == pytest.approx((1 / math.log2(3) + 1 + 1 / math.log2(5)) / 4)
    assert (report.shared_titles, report.shared_targets) == (1, 1)
    assert report.rows == 10
    assert report.seconds == pytest.approx({"pack": 0.25 / 4, "prompt": 0.5 / 4, "decode": 1 / 4})


def test_one_decoding_serves_every_k(clockwork, test_split):
    rec = clockwork()
    report = pf.evaluate(rec, test_split, ks=(1, 5, 20), batch_size=7)
    count = len(test_split.targets)
    assert rec.calls == [7] * (count // 7) + [count % 7] * bool(count % 7)
    assert pf.evaluate(clockwork(), test_split, ks=(5,)).metrics()["HR@5"].value == report.metrics()["HR@5"].value


def test_more_than_the_catalogue_has(clockwork, test_split, packer):
    """Lists end in -1, which no target is."""
    report = pf.evaluate(clockwork(), test_split, ks=(400,))
    assert max(report.ranks) <= len(packer.catalogue)


def test_users_are_found(clockwork, test_split, sample):
    """Some users of the split have several samples, and their numbers say whose each is."""
    report = pf.evaluate(clockwork(), test_split)
    spans = np.maximum(sample.splits["test"][:, 1] - np.maximum(sample.splits["test"][:, 0], 3) + 1, 0)
    assert np.bincount(report.users).tolist() == spans[spans > 0].tolist()
    count = len(test_split.targets)
    assert pf.evaluate(clockwork(), test_split, users=np.arange(count)).users == [*range(count)]


@pytest.mark.parametrize("fail_at", [0, 1, 3])
def test_a_killed_run_goes_on(clockwork, test_split, tmp_path, fail_at):
    whole = pf.evaluate(clockwork(), test_split, batch_size=5)
    with pytest.raises(KeyboardInterrupt):
        pf.evaluate(clockwork(fail_at=fail_at), test_split, batch_size=5, out=tmp_path)
    assert not (tmp_path / "report.json").exists()
    rec = clockwork()
    resumed = pf.evaluate(rec, test_split, batch_size=4, out=tmp_path)  # another size is the same run
    assert resumed.ranks == whole.ranks
    assert sum(rec.calls) == len(test_split.targets) - 5 * fail_at
    assert resumed.metrics() == whole.metrics()


def test_a_finished_run_decodes_nothing(clockwork, test_split, tmp_path):
    first = pf.evaluate(clockwork(), test_split, out=tmp_path)
    rec = clockwork()
    assert pf.evaluate(rec, test_split, out=tmp_path).ranks == first.ranks
    assert rec.calls == []


def test_another_run_is_refused(clockwork, test_split, sample, packer, tmp_path):
    def again(rec, samples=test_split, **options):
        return pf.evaluate(rec, samples, **{"out": tmp_path, "ks": (10,), **options})

    again(clockwork())
    before = (tmp_path / "batches.jsonl").read_bytes()
    other_model, other_packer = clockwork(), clockwork()
    other_model.model.weight.data[0, 0] += 1e-6
    other_packer.packer = pf.Packer(packer.catalogue, packer.prompt, pf.Text(), 50)
    for reason, call in {
        "the ranker: weights": lambda: again(other_model),
        "policy: class 'SessionPatches' and not 'Text'": lambda: again(other_packer),
        "k 10 and not 20": lambda: again(clockwork(), ks=(20,)),
        "method": lambda: again(clockwork(), method="exact"),
        "step": lambda: again(clockwork(), step=2),
        "samples": lambda: again(clockwork(), sample.split("test", max_items=49)),
    }.items():
        with pytest.raises(ValueError, match=f"another run.*{reason}"):
            call()
    assert (tmp_path / "batches.jsonl").read_bytes() == before


def test_two_runs_in_one_folder_are_noticed(clockwork, test_split, tmp_path):
    pf.evaluate(clockwork(), test_split, out=tmp_path)
    journal = tmp_path / "batches.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([*lines[:2], *lines[1:]]))
    with pytest.raises(ValueError, match="line 3: its 16 samples begin at 0, expected 16 of"):
        pf.evaluate(clockwork(), test_split, out=tmp_path)


def test_ranks_from_0_are_refused(clockwork, test_split, tmp_path):
    """Those of a report of before, or of a journal that is damaged."""
    old = pf.evaluate(clockwork(), test_split, out=tmp_path).to_dict()
    del old["format"]
    with pytest.raises(ValueError, match="format 1, expected 2: evaluate again"):
        Report.from_dict(old)
    journal = tmp_path / "batches.jsonl"
    first, entry, *rest = journal.read_text().splitlines(keepends=True)
    changed = json.loads(entry)
    changed["ranks"][3] = 0
    journal.write_text("".join([first, json.dumps(changed) + "\n", *rest]))
    with pytest.raises(ValueError, match="line 2: ranks: expected -1 for a miss or a rank from 1, got 0; the file"):
        pf.evaluate(clockwork(), test_split, out=tmp_path)


@pytest.mark.parametrize(
    ("ks", "message"),
    [
        ((5, 10**30), f"ks: expected at most 10000, got {10**30}; there are 299 titles"),
        ((10_001,), "ks: expected at most 10000, got 10001"),
        ((0,), "ks: expected at least 1, got 0"),
        ((), "ks: got none"),
    ],
)
def test_a_k_out_of_range_is_said_before_any_work(clockwork, test_split, tmp_path, ks, message):
    rec = clockwork()
    with pytest.raises(ValueError, match=message):
        pf.evaluate(rec, test_split, ks=ks, out=tmp_path / "out")
    assert rec.calls == []
    assert not (tmp_path / "out").exists()


def test_a_report_survives_the_disk(clockwork, test_split, tmp_path):
    report = pf.evaluate(clockwork(), test_split, out=tmp_path)
    loaded = Report.load(tmp_path / "report.json")
    assert loaded == report
    assert loaded.metrics() == report.metrics()
    written = json.loads((tmp_path / "report.json").read_text())["metrics"]["HR@10"]
    assert written == report.metrics()["HR@10"]._asdict()
    assert (tmp_path / "report.txt").read_text() == f"{report}\n"


def test_the_table_has_every_number(clockwork, test_split):
    shown = str(pf.evaluate(clockwork(), test_split, ks=(3,), name="clockwork"))
    for text in ("clockwork: ", "HR@3", "NDCG@3", "rows a prompt: 10.0", "decode", "peak memory", "share: 1"):
        assert text in shown


def test_compared_with_itself_and_another(clockwork, test_split):
    first = pf.evaluate(clockwork(), test_split, ks=(5, 20))
    same = first.compare(first)
    assert all(found.difference == (0, 0, 0) and found.p_value == 1 for found in same.values())
    second = pf.evaluate(clockwork(), test_split, ks=(20,), step=2)
    found = second.compare(first)
    assert list(found) == ["HR@20", "NDCG@20"]
    gained = second.metrics()["HR@20"].value - first.metrics()["HR@20"].value
    assert found["HR@20"].difference.value == pytest.approx(gained)
    assert "HR@20" in comparison_table({"first": found})


def test_other_samples_do_not_compare(clockwork, test_split, sample):
    first = pf.evaluate(clockwork(), test_split)
    with pytest.raises(ValueError, match="other samples"):
        first.compare(pf.evaluate(clockwork(), sample.split("val")))
    with pytest.raises(ValueError, match="K"):
        first.compare(pf.evaluate(clockwork(), test_split, ks=(3,)))


def test_history_lengths_do_not_matter_to_a_comparison(clockwork, test_split, sample):
    longer = pf.evaluate(clockwork(), sample.split("test", max_items=None))
    assert longer.compare(pf.evaluate(clockwork(), test_split))["HR@10"].p_value == 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda rec: pf.evaluate(rec, ([[1]], [2]), ks=()), ValueError, "ks"),
        (lambda rec: pf.evaluate(rec, ([[1]], [2]), ks=(0,)), ValueError, "ks"),
        (lambda rec: pf.evaluate(rec, ([[1]], [2]), ks=(1.5,)), TypeError, "ks"),
        (lambda rec: pf.evaluate(rec, ([[1]], [2]), batch_size=0), ValueError, "batch_size"),
        (lambda rec: pf.evaluate(rec, ([[1], []], [2, 2])), ValueError, "place 1"),
        (lambda rec: pf.evaluate(rec, ([], [])), ValueError, "samples: got none"),
        (lambda rec: pf.evaluate(rec, ([[1]], [2, 3])), ValueError, "targets"),
        (lambda rec: pf.evaluate(rec, ([[1]], [999])), ValueError, "999"),
        (lambda rec: pf.evaluate(rec, ([[1]], [2]), users=[1, 2]), ValueError, "users"),
    ],
)
def test_bad_input(clockwork, call, error, message):
    with pytest.raises(error, match=message):
        call(clockwork())


@pytest.mark.parametrize("content", ["{", "[]", '{"metrics": {}}', '{"metrics": {}, "ks": [1], "colour": 3}'])
def test_a_file_that_is_no_report(tmp_path, content):
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"report\.json: not a report"):
        Report.load(path)


WRONG = ({"a": "x"}, ["x"], [1.5], "text", 1e400, True)


@pytest.mark.parametrize("entry", ["report", None])
def test_a_report_of_another_shape(clockwork, test_split, tmp_path, entry):
    path = tmp_path / "report.json"
    good = pf.evaluate(clockwork(), test_split).to_dict()

    def load(fields):
        path.write_text(json.dumps(fields if entry is None else {entry: fields}))
        return Report.load(path)

    assert load(good).to_dict() == good
    for name in set(good) - {"metrics", "settings"}:
        for value in (
            *WRONG,
            *([None] if name in ("name", "ks", "ranks", "users", "identity", "shared_titles") else []),
        ):
            if name in ("name", "identity", "memory_kind") and value == "text":
                continue
            with pytest.raises(ValueError, match=r"report\.json: not a report"):
                load({**good, name: value})
    for change in (
        {"settings": None},
        {"ranks": good["ranks"][1:]},
        {"ks": []},
        {"ks": [0]},
        {"users": []},
        {"x": 1},
        {"ranks": [0] * len(good["ranks"])},
    ):
        with pytest.raises(ValueError, match=r"report\.json: not a report"):
            load({**good, **change})
