# SPDX-License-Identifier: Apache-2.0
"""The bar of a training run, its lines in a log, and the file of its losses."""

import itertools
import json

import pytest

pytest.importorskip("accelerate")
from transformers import TrainerControl, TrainerState
from transformers.utils import logging

from patchrec_fast.train.curves import Curves, Point, Progress, read
from patchrec_fast.train.folder import load_result


@pytest.mark.parametrize("before", [True, False])
def test_no_other_bar_while_it_is_shown(before, tmp_path):
    was = logging.is_progress_bar_enabled()
    (logging.enable_progress_bar if before else logging.disable_progress_bar)()
    try:
        bar, control = Progress(Curves(tmp_path / "curves.csv", lambda steps: 0)), TrainerControl()
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
    bar, control = Progress(callback), TrainerControl()
    bar.on_train_begin(None, TrainerState(max_steps=3), control)
    monkeypatch.setattr(bar._bar, "set_postfix", shown.update)
    bar.on_log(None, TrainerState(max_steps=3), control, {"loss": 2.5})
    bar.on_train_end(None, TrainerState(max_steps=3), control)
    assert shown == {"train": "2.500", "rows/s": "75", "targets/s": "3.5"}


@pytest.mark.parametrize(("seconds", "steps"), [(0.1, 40), (1, 400), (60, 1000)])
def test_a_line_every_so_often_without_a_terminal(tmp_path, capsys, seconds, steps):
    """Never two in ten seconds, never five minutes or a twentieth of a longer run without one."""
    now = 0.0
    curves = Curves(tmp_path / "curves.csv", targets=lambda steps: 7 * steps)
    bar, control, state = Progress(curves, clock=lambda: now), TrainerControl(), TrainerState(max_steps=steps)
    bar.on_train_begin(None, state, control)
    curves.points.append(Point(0, "val", 9.0, 0, 0.0))
    bar.on_log(None, state, control, {"eval_loss": 9.0})
    assert capsys.readouterr().err == f"step 0 of {steps:,}, validation loss 9.000\n"
    said = []
    for state.global_step in range(1, steps + 1):
        now += seconds
        curves.points.append(Point(state.global_step, "train", 2.5, 300 * state.global_step, now))
        bar.on_log(None, state, control, {"loss": 2.5})
        bar.on_step_end(None, state, control)
        if lines := capsys.readouterr().err.splitlines():
            [line] = lines
            said.append((now, state.global_step))
            assert line.startswith(f"step {state.global_step:,} of {steps:,}, loss 2.500, {300 / seconds:,.0f} rows/s")
            assert f"{300 / seconds:,.0f} rows/s, {7 / seconds:,.1f} targets/s" in line
            assert line.endswith(" left")
    bar.on_train_end(None, state, control)
    times = [0.0, *(time for time, _ in said)]
    assert all(10 <= after - before <= max(300, 0.05 * steps * seconds) for before, after in itertools.pairwise(times))
    assert len(said) == {0.1: 0, 1: 20, 60: 200}[seconds]


def test_one_line_of_a_step_that_is_validated(tmp_path, capsys):
    """As transformers calls: the step's end, its training loss, then its validation."""
    curves = Curves(tmp_path / "curves.csv", lambda steps: 0)
    now = 0.0
    bar, control, state = Progress(curves, clock=lambda: now), TrainerControl(), TrainerState(max_steps=100)
    bar.on_train_begin(None, state, control)
    now, state.global_step = 60.0, 50
    control.should_log = control.should_evaluate = True
    bar.on_step_end(None, state, control)
    curves.points.append(Point(50, "train", 2.5, 0, now))
    bar.on_log(None, state, control, {"loss": 2.5})
    assert capsys.readouterr().err == ""
    curves.points.append(Point(50, "val", 3.5, 0, now))
    bar.on_log(None, state, control, {"eval_loss": 3.5})
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("step 50 of 100, loss 2.500, validation loss 3.500, ")
    bar.on_train_end(None, state, control)


def test_the_time_that_is_left(tmp_path, capsys):
    """By the steps of this process: a resumed run began at 50."""
    now = 0.0
    bar, control = Progress(Curves(tmp_path / "curves.csv", lambda steps: 0), clock=lambda: now), TrainerControl()
    for step, ends in ((60, "42 s left"), (51, "8 min left"), (52, "4 min left"), (99, "0 s left")):
        state = TrainerState(max_steps=100, global_step=50)
        now = 0.0
        bar.on_train_begin(None, state, control)
        now, state.global_step = 10.4, step
        bar.on_log(None, state, control, {"eval_loss": 1.0})
        assert ends in capsys.readouterr().err
        bar.on_train_end(None, state, control)


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


def test_a_result_of_an_older_run_said_tokens_for_rows(tmp_path):
    result = {"stage": "text", "steps": 1, "samples": 2, "train_loss": 1.0, "first_val_loss": None, "val_loss": None}
    result |= {"tokens": 50, "seconds": 2.0, "out": "x"}
    file = tmp_path / "result.json"
    for speed in ("tokens_per_second", "rows_per_second"):
        file.write_text(json.dumps({**result, speed: 25.0}))
        assert load_result(file) == {**result, "rows_per_second": 25.0}
    for wrong in (result, {**result, "rows_per_second": "25"}):
        file.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=r"result\.json: .*rows_per_second|result\.json: .*tokens_per_second"):
            load_result(file)
