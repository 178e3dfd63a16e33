# SPDX-License-Identifier: Apache-2.0
"""Which checkpoints can be resumed from.

Trainer writes a checkpoint's files one after another under their final names, so a run that is killed meanwhile
leaves a folder that looks like a checkpoint. The seal is written last; a folder without one is not taken.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .._files import write
from ..hf.settings import Settings

SEAL = "checkpoint.json"


class Seal(TrainerCallback):
    """Adds the tokenizer and `patchrec.json` to each checkpoint, then the seal: the size of every file."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: Settings) -> None:
        self._tokenizer = tokenizer
        self._settings = settings

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()  # each process writes the state of its random numbers
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self._tokenizer.save_pretrained(folder)
        self._settings.save(folder)
        write(folder / SEAL, json.dumps(_sizes(folder), indent=1) + "\n")


def latest(out: Path) -> Path | None:
    """The newest sealed checkpoint of an output folder.

    Raises:
        ValueError: a file of it is missing or is not as long as it was written.
    """
    found = {int(name[1]): path for path in out.glob("checkpoint-*") if (name := re.fullmatch(r".*-(\d+)", path.name))}
    sealed = [step for step, path in found.items() if (path / SEAL).is_file()]
    if not sealed:
        return None
    folder = found[max(sealed)]
    actual = _sizes(folder)
    for name, size in json.loads((folder / SEAL).read_text()).items():
        if actual.get(name) != size:
            raise ValueError(
                f"{folder / name}: the checkpoint is damaged: expected {size} bytes, got {actual.get(name, 0)}; "
                "remove its folder to resume from the checkpoint before it"
            )
    return folder


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != SEAL)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
