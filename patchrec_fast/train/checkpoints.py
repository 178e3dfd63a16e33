# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that appear whole or not at all, and which of them a run goes on from.

Trainer writes a checkpoint's files one after another. Here it does so in a folder of unfinished things; the seal, the
size and SHA-256 of every file, is written last, then the checkpoint is renamed into its place. What a killed run left
unfinished is removed when the run goes on.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, Trainer

from .. import _json
from .._files import write
from ..layout.config import PromptConfig
from ..models.saving import open_up

SEAL = "checkpoint.json"
UNFINISHED = "unfinished"
_SHAPE = {str: {"bytes": int, "sha256": str}}


class CheckpointingTrainer(Trainer):
    """The stock Trainer. Each checkpoint has the tokenizer, `patchrec.json` and the seal too; only the newest stay."""

    def __init__(
        self, *arguments: Any, tokenizer: PreTrainedTokenizerBase, settings: PromptConfig, keep: int, **rest: Any
    ):
        super().__init__(*arguments, **rest)
        self._tokenizer = tokenizer
        self._settings = settings
        self._keep = keep

    def _get_output_dir(self, trial: Any) -> str:
        """Where Trainer writes checkpoints."""
        return str(Path(self.args.output_dir) / UNFINISHED)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Without those of a head that is the embedding: it is loaded under the other name."""
        names = dict(self.model.named_parameters(remove_duplicate=False))
        missing = set(load_result.missing_keys)
        loaded = {id(parameter) for name, parameter in names.items() if name not in missing}
        lacking = [name for name in load_result.missing_keys if id(names.get(name)) not in loaded]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=lacking))

    def _save_checkpoint(self, *arguments: Any, **rest: Any) -> None:
        name = f"checkpoint-{self.state.global_step}"
        out = Path(self.args.output_dir)
        unfinished = out / UNFINISHED / name
        with saving(out / name, unfinished):
            super()._save_checkpoint(*arguments, **rest)
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.barrier()  # each process writes the state of its random numbers
            if self.is_world_process_zero():
                self._tokenizer.save_pretrained(unfinished)
                self._settings.save(unfinished)
                open_up(unfinished)
                write(unfinished / SEAL, _json.dumps(_measured(unfinished), indent=1))
                os.rename(unfinished, out / name)
        if self.is_world_process_zero():
            _prune(out, self._keep)


@contextmanager
def saving(path: Path, unfinished: Path) -> Iterator[None]:
    """Names what could not be saved, whatever library failed at it, and gives the room back."""
    try:
        yield
    except Exception as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(f"{path}: could not be saved ({reason}); what was saved before is kept") from error


def latest(out: Path) -> Path | None:
    """The newest sealed checkpoint of an output folder."""
    sealed = _sealed(out)
    return sealed[max(sealed)] if sealed else None


def check(folder: Path) -> None:
    """Raises ValueError where a file of a checkpoint is missing or is not as it was written; the message names it."""
    actual = dict(_files(folder))
    sealed = _json.load(folder / SEAL, _SHAPE, "the seal of a checkpoint")
    if missing := actual.keys() - sealed.keys():
        raise ValueError(f"{folder / SEAL}: not the seal of this checkpoint, or damaged: it lacks {min(missing)}")
    for name, written in sealed.items():
        size = actual[name].stat().st_size if name in actual else 0
        if size != written["bytes"]:
            problem = f"expected {written['bytes']} bytes, got {size}"
        elif _sha256(actual[name]) != written["sha256"]:
            problem = "its content is not what was written"
        else:
            continue
        raise ValueError(
            f"{folder / name}: the checkpoint is damaged: {problem}; remove its folder to resume from the checkpoint "
            "before it"
        )


def clean(out: Path, keep: int) -> None:
    """Removes what a killed run left unfinished, checkpoints without seal, and those beyond the newest `keep`."""
    _prune(out, keep)
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    sealed = _sealed(out).values()
    for path in out.glob("checkpoint-*"):
        if path not in sealed and path.is_dir():
            shutil.rmtree(path)


def _prune(out: Path, keep: int) -> None:
    """Removes the oldest checkpoints: out of their place at once, then their files."""
    sealed = _sealed(out)
    for step in sorted(sealed)[:-keep]:
        gone = out / UNFINISHED / sealed[step].name
        gone.parent.mkdir(exist_ok=True)
        os.rename(sealed[step], gone)
        shutil.rmtree(gone)


def _sealed(out: Path) -> dict[int, Path]:
    found = {int(name[1]): path for path in out.glob("checkpoint-*") if (name := re.fullmatch(r".*-(\d+)", path.name))}
    return {step: path for step, path in found.items() if (path / SEAL).is_file()}


def _files(folder: Path) -> list[tuple[str, Path]]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != SEAL)
    return [(path.relative_to(folder).as_posix(), path) for path in paths]


def _measured(folder: Path) -> dict[str, Any]:
    return {name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for name, path in _files(folder)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
