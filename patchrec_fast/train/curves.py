# SPDX-License-Identifier: Apache-2.0
"""The losses of a run as a CSV file, and as a bar on a terminal or lines in a log."""

import csv
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from .._files import write

SPLITS = ("train", "val")


class Point(NamedTuple):
    """One line of the file."""

    step: int  # optimizer steps so far
    split: str  # "train": the mean since the line before; "val"
    loss: float  # nats a supervised token
    tokens: int  # rows the model has learnt from so far, on all processes, templates and text twins too
    seconds: float  # of training so far, without validation and saving


class Curves(TrainerCallback):
    """Keeps `points`, and the file that holds them.

    A run that is resumed goes on after the points of its checkpoint; those that the killed run wrote later are
    dropped, as it will come by them again.
    """

    def __init__(self, path: Path, targets: Callable[[int], int]) -> None:
        """Set up.

        Args:
            targets: how many the first so many optimizer steps learn (`MicroBatches.targets`).
        """
        self.points: list[Point] = []
        self._targets = targets
        self._path = path
        self._tokens = 0  # of this process, not yet in a point
        self._seconds = 0.0
        self._since = 0.0

    def last(self, split: str) -> Point | None:
        """The newest point of a split."""
        return next((point for point in reversed(self.points) if point.split == split), None)

    @property
    def speed(self) -> tuple[float, float]:
        """Rows and targets a second, over the whole run."""
        if not self.points or not (seconds := self.points[-1].seconds):
            return 0.0, 0.0
        return self.points[-1].tokens / seconds, self._targets(self.points[-1].step) / seconds

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **_: Any
    ) -> None:
        if state.global_step:
            self.points = [point for point in read(self._path) if point.step <= state.global_step]
            self._seconds = self.points[-1].seconds if self.points else 0.0
        count = torch.compiler.disable(self._count) if args.torch_compile else self._count
        self._hook = model.register_forward_pre_hook(count, with_kwargs=True)
        self._since = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._seconds += time.perf_counter() - self._since
        self._since = time.perf_counter()
        last = state.global_step >= state.max_steps
        control.should_evaluate |= last and args.eval_strategy != "no"
        control.should_log |= last or control.should_save  # so that a resumed run knows its tokens and seconds

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        for name, split in (("loss", "train"), ("eval_loss", "val")):
            if name in logs:
                self._add(args, state, split, logs[name])

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._since = time.perf_counter()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._since = time.perf_counter()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._hook.remove()

    def _count(self, model: nn.Module, _: Any, inputs: dict[str, Any]) -> None:
        if model.training:
            positions: Tensor = inputs["position_ids"]
            self._tokens += positions.numel()

    def _add(self, args: TrainingArguments, state: TrainerState, split: str, loss: float) -> None:
        before = self.points[-1].tokens if self.points else 0
        fresh = torch.tensor(self._tokens, device=args.device)
        if args.world_size > 1:
            torch.distributed.all_reduce(fresh)
        self._tokens = 0
        self.points.append(Point(state.global_step, split, loss, before + int(fresh), round(self._seconds, 3)))
        if state.is_world_process_zero:
            text = io.StringIO(newline="")
            csv.writer(text, lineterminator="\n").writerows([Point._fields, *self.points])
            write(self._path, text.getvalue())


class Progress(TrainerCallback):
    """A bar with the losses, and the rows and targets a second; where stderr is no terminal, a line of them.

    A line comes with each validation, and each twentieth of the steps or five minutes, never two in ten seconds.
    transformers' own bars, one a checkpoint, are off meanwhile: they would tear ours.
    """

    _PART, _LONG, _SHORT = 0.05, 300.0, 10.0

    def __init__(self, curves: Curves, clock: Callable[[], float] = time.monotonic) -> None:
        self._curves = curves
        self._clock = clock

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        quiet = None if state.is_world_process_zero else True  # None: where it is not a terminal
        self._begun = self._said = self._clock()
        self._first = self._step = state.global_step
        self._others = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        self._bar = tqdm(total=state.max_steps, initial=state.global_step, disable=quiet, dynamic_ncols=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._bar.update(state.global_step - self._bar.n)
        if not (control.should_log or control.should_evaluate):  # whose losses are news, a moment later
            self._say_if_due(state)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        if "eval_loss" in logs:
            self._say(state, validated=True)
        elif not control.should_evaluate:
            self._say_if_due(state)
        losses = {split: self._curves.last(split) for split in SPLITS}
        shown = {split: f"{point.loss:.3f}" for split, point in losses.items() if point}
        rows, targets = self._curves.speed
        self._bar.set_postfix({**shown, "rows/s": f"{rows:,.0f}", "targets/s": f"{targets:,.1f}"})

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._bar.close()
        if self._others:
            logging.enable_progress_bar()

    def _say_if_due(self, state: TrainerState) -> None:
        steps, seconds = state.global_step - self._step, self._clock() - self._said
        if seconds >= self._SHORT and (steps >= self._PART * state.max_steps or seconds >= self._LONG):
            self._say(state)

    def _say(self, state: TrainerState, validated: bool = False) -> None:
        if not self._bar.disable or not state.is_world_process_zero:
            return
        now, done = self._clock(), state.global_step - self._first
        self._said, self._step = now, state.global_step
        said = [f"step {state.global_step:,} of {state.max_steps:,}"]
        for split, name in zip(SPLITS, ("loss", "validation loss"), strict=True):
            if (split == SPLITS[0] or validated) and (point := self._curves.last(split)) is not None:
                said.append(f"{name} {point.loss:.3f}")
        if done:
            rows, targets = self._curves.speed
            said += [f"{rows:,.0f} rows/s, {targets:,.1f} targets/s"] if rows else []
            said.append(f"{_duration((now - self._begun) / done * (state.max_steps - state.global_step))} left")
        print(", ".join(said), file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    """In the unit that a reader would choose."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def read(path: Path) -> list[Point]:
    """The points of a file.

    Raises:
        OSError: no such file.
        ValueError: it is not one that `Curves` wrote; the message names the line.
    """
    number = 1
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = csv.reader(file)
            if tuple(next(lines, ())) != Point._fields:
                raise ValueError(f"expected the columns {', '.join(Point._fields)}")
            number += 1
            points: list[Point] = []
            for line in lines:
                number = lines.line_num
                points.append(_point(line, points[-1] if points else None))
                number += 1  # where the reader may fail next
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: line {number}: not curves of a training run, or damaged ({error})") from error
    return points


def _point(line: list[str], before: Point | None) -> Point:
    if len(line) != len(Point._fields):
        raise ValueError(f"expected {len(Point._fields)} values, got {len(line)}")
    step, split, loss, tokens, seconds = line
    point = Point(int(step), split, float(loss), int(tokens), float(seconds))
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    for name in ("step", "tokens", "seconds"):
        value = getattr(point, name)
        if not getattr(before, name, 0) <= value < float("inf"):
            raise ValueError(f"{name}: expected no less than in the line before, got {value}")
    return point
