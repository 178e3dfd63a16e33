# SPDX-License-Identifier: Apache-2.0
"""A callback that stops a run whose loss is not finite, or that is not the run its batches were planned for.

A hook on the model notes on the device, without waiting for it, the first micro-batch whose loss is NaN or infinite.
The note is read before each optimizer step on the CPU; elsewhere only where the trainer waits for the device anyway:
before it logs, evaluates or saves, so that no checkpoint is written after such a loss. As a micro-batch is a function
of its number, the bad one is made again and saved.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .._files import replacing
from .batches import MicroBatches

_NONE = 2**62


class Guard(TrainerCallback):
    """`Trainer(..., callbacks=[Guard(batches)])`.

    Raises, from `Trainer.train`:
        FloatingPointError: a loss that is not finite. The message names the batch and its samples, and the file in
            the output folder that holds its tensors (`numpy.load` reads it, without pickle).
        ValueError: the trainer's steps are not those of `batches`, so that its progress, and the probability that
            rises with it, would be wrong.
    """

    def __init__(self, batches: MicroBatches) -> None:
        self._batches = batches
        self._next = 0  # of this process's micro-batches
        self._first_bad: Tensor | None = None  # () int64

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **_: Any
    ) -> None:
        if state.max_steps != self._batches.optimizer_steps:
            raise ValueError(
                f"the trainer has {state.max_steps} optimizer steps, its micro-batches were planned for "
                f"{self._batches.optimizer_steps} with world_size={self._batches.world_size}, accumulation="
                f"{self._batches.accumulation}; use trainer_arguments, and MicroBatches(steps=...) for fewer steps"
            )
        self._first_bad = None
        # Traced, its counting would add two to the four graphs of a tiny Llama.
        look = torch.compiler.disable(self._look) if args.torch_compile else self._look
        self._hook = model.register_forward_hook(look)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._next = state.global_step * args.gradient_accumulation_steps

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if args.device.type == "cpu":
            self._check(args)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if control.should_log or control.should_evaluate or control.should_save:
            self._check(args)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._hook.remove()
        self._check(args)

    def _look(self, model: nn.Module, _: Any, output: Any) -> None:
        if not model.training:
            return
        loss = output["loss"] if isinstance(output, dict) else output[0]
        bad = torch.where(loss.detach().isfinite(), _NONE, self._next)
        self._first_bad = bad if self._first_bad is None else torch.minimum(self._first_bad, bad)
        self._next += 1

    def _check(self, args: TrainingArguments) -> None:
        first = _NONE if self._first_bad is None else int(self._first_bad)
        if first == _NONE:
            return
        self._hook.remove()
        batch = self._batches.describe(first * args.world_size + args.process_index)
        path = Path(args.output_dir) / f"nonfinite-batch-{batch.number}.npz"
        inputs = self._batches[batch.number].items()
        arrays: dict[str, Any] = {name: value.numpy() for name, value in inputs if isinstance(value, Tensor)}
        with replacing(path) as temporary:
            np.savez(temporary, samples=batch.samples, **arrays)
        raise FloatingPointError(
            f"the loss of micro-batch {batch.number} (optimizer step {batch.step}, samples "
            f"{', '.join(map(str, batch.samples[:5]))}{', ...' if len(batch.samples) > 5 else ''}) is not finite; its "
            f"tensors are in {path}. Lower the learning rate or the gradient's largest norm, or train in bf16 instead "
            "of fp16"
        )
