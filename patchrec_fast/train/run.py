# SPDX-License-Identifier: Apache-2.0
"""`train`: one stage of training, from data to a model folder, through transformers' own Trainer.

The output folder:

    model.safetensors, config.json, tokenizer.json, ...   the model, in plain Hugging Face format
    patchrec.json     the prompts it was trained on; written last, so a folder that has it is complete
    curves.csv        losses (`curves.Point`)
    recipe.toml       every key of the recipe; run.json: what else went in; result.json: what came out
    checkpoint-N/     where `resume` goes on
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .. import __version__
from .._files import write
from ..hf import Attachment, attach
from ..hf.attention import KERNELS
from ..hf.settings import Settings
from .arguments import trainer_arguments
from .batches import MicroBatches
from .recipes import Recipe
from .stages import Stage
from .stages import stage as make_stage
from .start import add_adapters, open_data, open_model, some

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer

    from .curves import Curves

_FREE = {"log_steps", "eval_steps", "save_steps", "checkpoints", "report_to", "workers", "limit_val"}
"""Keys that a resumed run may change: its weights do not depend on them."""
_PACKAGES = ("torch", "transformers", "accelerate", "peft", "numpy")
RECIPE, RUN, RESULT = "recipe.toml", "run.json", "result.json"


class _Run(NamedTuple):
    """A run that is ready to start."""

    trainer: Trainer
    curves: Curves
    tokenizer: PreTrainedTokenizerBase
    settings: Settings
    attachment: Attachment
    samples: int


def train(
    recipe: Recipe,
    stage: str,
    *,
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    tokenizer: str | os.PathLike[str] | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Trains one stage and writes the output folder. Under torchrun or accelerate launch, call it in each process.

    Args:
        recipe: everything that has a number.
        stage: one of `STAGES`.
        model: a Hugging Face folder, such as the output of a former stage, or a hub name; or "tiny".
        data: a folder in the prepared format, or "sample" for the generated one.
        out: the output folder; new, empty or of a run that failed before its first loss, unless resuming.
        tokenizer: only for "tiny": a folder, or "sample".
        resume: go on from the newest whole checkpoint of `out`, or from the start where it has none yet; the weights
            come out bit for bit as if nothing had happened. A finished run is left as it is.

    Returns:
        What `result.json` holds: stage, steps, samples, train_loss (the last one), val_loss and first_val_loss (nats a
        supervised token), tokens (rows learnt from), seconds (of training alone), tokens_per_second, out.

    Raises:
        ImportError: accelerate, or peft for LoRA, is not installed.
        FileNotFoundError, ValueError, TypeError: an input that is missing or wrong; an output folder in use; another
            run than the one to be resumed; a damaged checkpoint.
        FloatingPointError: a loss that is not finite; the message names the file that holds the batch.
    """
    folder = Path(out)
    chosen = make_stage(stage, keep=recipe.keep, group=recipe.group, p=recipe.p)
    main = int(os.environ.get("RANK", 0)) == 0
    run: dict[str, Any] = {
        "stage": stage,
        "model": str(model),
        "data": str(data),
        "tokenizer": tokenizer and str(tokenizer),
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
    }
    if main:
        _prepare(folder, recipe, run, resume)
    if resume and (folder / RESULT).is_file():
        return json.loads((folder / RESULT).read_text())
    ready = _assemble(recipe, chosen, run, folder)

    from .checkpoints import latest

    checkpoint = latest(folder) if resume else None
    ready.trainer.args.eval_on_start = checkpoint is None
    ready.trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    _save(ready, folder, recipe.lora)
    result = _result(stage, folder, ready)
    if main:
        write(folder / RESULT, _json(result))
    return result


def _prepare(folder: Path, recipe: Recipe, run: dict[str, Any], resume: bool) -> None:
    """Claims a new output folder, or one whose run never started, or checks that it belongs to the same run."""
    if not resume:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"out: {folder} is a file, expected a folder that is new or empty")
        if folder.exists() and {path.name for path in folder.iterdir()} not in (set(), {RECIPE, RUN}):
            raise ValueError(f"out: {folder} is not empty; give a new folder, or --resume the run that it holds")
        folder.mkdir(parents=True, exist_ok=True)
        recipe.save(folder / RECIPE)
        versions = {name: importlib.metadata.version(name) for name in _PACKAGES if _installed(name)}
        versions |= {"patchrec_fast": __version__, "python": platform.python_version()}
        write(folder / RUN, _json({**run, "recipe": dataclasses.asdict(recipe), "versions": versions}))
        return
    if not (folder / RUN).is_file():
        raise FileNotFoundError(f"out: {folder} holds no run to resume; it has no {RUN}")
    before = json.loads((folder / RUN).read_text())
    old = {**before["recipe"], **{name: before[name] for name in run}}
    for name, value in {**dataclasses.asdict(recipe), **run}.items():
        if name not in _FREE and old.get(name) != value:
            raise ValueError(
                f"{name}: the run in {folder} had {old.get(name)!r}, got {value!r}; it cannot be resumed so"
            )


def _assemble(recipe: Recipe, stage: Stage, run: dict[str, Any], folder: Path) -> _Run:
    """The trainer, ready to start."""
    from transformers import Trainer, TrainingArguments, set_seed
    from transformers.trainer_callback import PrinterCallback

    from .checkpoints import Seal
    from .curves import Bar, Curves
    from .guard import Guard

    dataset = open_data(run["data"])
    set_seed(recipe.seed)  # rows added to the embeddings, and adapters, begin at random
    model, tokenizer = open_model(run["model"], run["tokenizer"], dataset.titles, recipe)
    settings = Settings(recipe.instruction, recipe.system or None, recipe.separators, stage.final, recipe.max_items)
    packer = settings.packer(dataset.titles, tokenizer)
    packer.plan = torch.cuda.is_available()
    ours = recipe.attention in ("auto", *KERNELS)
    packer.share_prefix = ours if recipe.share_prefix is None else recipe.share_prefix
    world_size = run["processes"]
    shape = _micro_batch(recipe, world_size)
    samples = some(dataset.split("train", recipe.max_items), recipe.limit_train)
    batches = MicroBatches(
        samples,
        packer,
        stage,
        **shape,
        accumulation=recipe.accumulation,
        world_size=world_size,
        epochs=recipe.epochs,
        steps=recipe.steps,
        seed=recipe.seed,
    )
    validation = some(dataset.split("val", recipe.max_items), recipe.limit_val)
    checked = MicroBatches(validation, packer, stage, **shape, world_size=world_size, evaluation=True)
    arguments = TrainingArguments(**_arguments(recipe, folder, batches.optimizer_steps), **trainer_arguments(batches))
    if arguments.n_gpu > 1:
        raise ValueError(f"{arguments.n_gpu} GPUs are visible: start one process a GPU with torchrun, or show only one")
    if recipe.gradient_checkpointing:  # by hand: Trainer's argument for it has two names
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if recipe.lora:
        model = add_adapters(model, tokenizer, recipe.lora_rank)
    attachment = attach(model, recipe.attention)
    curves = Curves(folder / "curves.csv")
    trainer = Trainer(
        model,
        arguments,
        data_collator=batches.collate,
        train_dataset=batches,
        eval_dataset=checked,
        callbacks=[Guard(batches), curves, Bar(curves), Seal(tokenizer, settings)],
    )
    trainer.remove_callback(PrinterCallback)
    return _Run(trainer, curves, tokenizer, settings, attachment, len(samples.targets))


def _micro_batch(recipe: Recipe, world_size: int) -> dict[str, Any]:
    """How large a micro-batch is, as `MicroBatches` takes it."""
    if recipe.rows is not None:
        return {"rows": recipe.rows}
    assert recipe.batch is not None  # checked by Recipe
    parts = recipe.accumulation * world_size
    if recipe.batch % parts:
        raise ValueError(
            f"batch: expected a multiple of accumulation * processes = {recipe.accumulation} * {world_size}, "
            f"got {recipe.batch}"
        )
    return {"sequences": recipe.batch // parts}


def _arguments(recipe: Recipe, folder: Path, steps: int) -> dict[str, Any]:
    """The part of TrainingArguments that the recipe says, for so many optimizer steps."""
    return {
        "output_dir": str(folder),
        "seed": recipe.seed,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": recipe.schedule,
        "warmup_steps": recipe.warmup,
        "max_grad_norm": recipe.clip,
        "weight_decay": recipe.weight_decay,
        "use_cpu": not torch.accelerator.is_available(),  # else bf16 is refused
        "bf16": recipe.bf16,
        "torch_compile": recipe.compile,
        "dataloader_num_workers": recipe.workers,
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "logging_steps": _steps(recipe.log_steps, steps),
        "eval_strategy": "steps",
        "eval_steps": _steps(recipe.eval_steps, steps),
        "save_steps": _steps(recipe.save_steps, steps),
        "save_total_limit": recipe.checkpoints,
        "report_to": [name.strip() for name in recipe.report_to.split(",")],
        "disable_tqdm": True,  # our bar knows the tokens
        "use_cache": True,  # only written to config.json, for those who generate later; packed calls have no cache
    }


def _steps(count: float, total: int) -> int:
    """The whole number that Trainer makes of a fraction; given one, it would warn of another run when it resumes."""
    return math.ceil(total * count) if count < 1 else int(count)


def _save(run: _Run, folder: Path, lora: bool) -> None:
    """The model in plain format: under another name first, `patchrec.json` at the very end."""
    unfinished = folder / "unfinished-model"
    run.attachment.detach()
    main = run.trainer.is_world_process_zero()
    if lora:
        merged = run.trainer.model.merge_and_unload()
        if main:
            merged.save_pretrained(unfinished)
    else:
        run.trainer.save_model(str(unfinished))  # a sharded model is gathered by all processes
    if not main:
        return
    run.tokenizer.save_pretrained(unfinished)
    for path in unfinished.iterdir():
        if path.name != "training_args.bin":  # a pickle; recipe.toml and run.json say the same
            os.replace(path, folder / path.name)
    shutil.rmtree(unfinished)
    run.settings.save(folder)


def _result(stage: str, folder: Path, run: _Run) -> dict[str, Any]:
    points = run.curves.points
    losses = [point.loss for point in points if point.split == "val"]
    train = run.curves.last("train")
    return {
        "stage": stage,
        "steps": run.trainer.state.global_step,
        "samples": run.samples,
        "train_loss": train and train.loss,
        "first_val_loss": losses[0],
        "val_loss": losses[-1],
        "tokens": points[-1].tokens,
        "seconds": points[-1].seconds,
        "tokens_per_second": round(run.curves.speed, 1),
        "out": str(folder),
    }


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _installed(package: str) -> bool:
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False
