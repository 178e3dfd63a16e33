# SPDX-License-Identifier: Apache-2.0
"""The bar of a training run."""

import pytest

pytest.importorskip("accelerate")
from transformers import TrainerControl, TrainerState
from transformers.utils import logging

from patchrec_fast.train.curves import Bar, Curves, Point, read


@pytest.mark.parametrize("before", [True, False])
def test_no_other_bar_while_it_is_shown(before, tmp_path):
    was = logging.is_progress_bar_enabled()
    (logging.enable_progress_bar if before else logging.disable_progress_bar)()
    try:
        bar, control = Bar(Curves(tmp_path / "curves.csv", lambda steps: 0)), TrainerControl()
        bar.on_train_begin(None, TrainerState(max_steps=3), control)
        assert not logging.is_progress_bar_enabled()
        bar.on_train_end(None, TrainerState(max_steps=3), control)
        assert logging.is_progress_bar_enabled() == before
    finally:
        (logging.enable_progress_bar if was else logging.disable_progress_bar)()


def test_the_bar_says_rows_and_targets_a_second(tmp_path, monkeypatch):
    shown = {}
    callback = Curves(tmp_path / "curves.csv", targets=lambda steps: 7 * steps)
    callback.points = [Point(2, "train", 2.5, 300, 4.0)]
    bar, control = Bar(callback), TrainerControl()
    bar.on_train_begin(None, TrainerState(max_steps=3), control)
    monkeypatch.setattr(bar._bar, "set_postfix", shown.update)
    bar.on_log(None, TrainerState(max_steps=3), control)
    bar.on_train_end(None, TrainerState(max_steps=3), control)
    assert shown == {"train": "2.500", "rows/s": "75", "targets/s": "3.5"}


GOOD = "step,split,loss,tokens,seconds\n1,train,2.5,10,0.5\n"


def test_curves_are_read(tmp_path):
    (tmp_path / "curves.csv").write_text(GOOD + "1,val,nan,10,0.5\n")
    points = read(tmp_path / "curves.csv")
    assert points[0] == Point(1, "train", 2.5, 10, 0.5)
    assert points[1].loss != points[1].loss


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ("step,loss\n1,2\n", 1),
        (GOOD + "2,train\n", 3),
        (GOOD + "2,train,1,20,1,9\n", 3),
        (GOOD + "x,train,1,20,1\n", 3),
        (GOOD + "2,test,1,20,1\n", 3),
        (GOOD + "0,train,1,20,1\n", 3),
        (GOOD + "2,train,1,5,1\n", 3),
        (GOOD + "2,train,1,20,nan\n", 3),
        (GOOD + "2,train,1,20,inf\n", 3),
        (GOOD + "2," + "a" * 200_000 + ",1,20,1\n", 3),
        (GOOD + "2,tr\0ain,1,20,1\n", 3),
        (GOOD + "2,\udcff,1,20,1\n", 1),
    ],
)
def test_damaged_curves_are_named(text, line, tmp_path):
    path = tmp_path / "curves.csv"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=rf"curves\.csv: line {line}: not curves of a training run"):
        read(path)
