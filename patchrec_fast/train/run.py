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

import math
import os
import shutil
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .. import _json
from .._files import write
from .._lock import only_one
from .._options import TINY
from ..data import Dataset, Samples
from ..hf import Attachment, attach
from ..hf.attention import KERNELS
from ..layout import Packer
from ..layout.config import PromptConfig
from ..models import fingerprint
from ..models.saving import open_up
from .arguments import trainer_arguments
from .batches import MicroBatches, count_samples
from .by_user import Passes, passes
from .folder import RECIPE, RESULT, check_new, check_recipe, check_same, load_result, load_run, start
from .recipes import Recipe
from .stages import Stage
from .start import add_adapters, chosen_by, of_split, open_data, open_model, targets_per_pass

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer

    from .curves import Curves


class _Run(NamedTuple):
    """A run that is ready to start."""

    trainer: Trainer
    curves: Curves
    tokenizer: PreTrainedTokenizerBase
    settings: PromptConfig
    attachment: Attachment
    samples: int
    by: str
    began_with: dict[str, Any]


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
        out: the output folder; new, empty or of a run that failed before its first loss, unless resuming. One run at a
            time.
        tokenizer: only for "tiny": a folder, or "sample".
        resume: go on from the newest checkpoint of `out`, or from the start where it has none yet; the weights
            come out bit for bit as if nothing had happened (on a GPU only under
            `torch.use_deterministic_algorithms(True)`: flash attention's backward adds in any order). The model,
            tokenizer and data may have moved, not changed. A finished run is left as it is.

    Returns:
        What `result.json` holds: stage, steps, samples (targets of an epoch), by ("user" or "prompt"), train_loss (the
        last one), val_loss and first_val_loss (nats a supervised token; None where the data have no validation
        samples), tokens (rows learnt from), seconds (of training alone), rows_per_second, targets_per_second, out.

    Raises:
        ImportError: accelerate, or peft for LoRA, is not installed.
        FileNotFoundError, ValueError, TypeError: an input that is missing or wrong; an output folder in use; another
            run than the one to be resumed; a damaged file of it.
        OSError: a file cannot be written. What was written before stays, so that the run can be resumed.
        FloatingPointError: a loss that is not finite; the message names the file that holds the batch.
    """
    folder = Path(out)
    chosen = recipe.stage(stage)
    main = int(os.environ.get("RANK", 0)) == 0
    run: dict[str, Any] = {
        "stage": stage,
        "model": str(model),
        "data": str(data),
        "tokenizer": tokenizer and str(tokenizer),
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
    }
    if resume and main:
        load_run(folder)  # before the folder would be made
    if not resume and main:
        check_new(folder)
    with only_one(folder) if main else nullcontext():
        return _train(recipe, chosen, run, folder, main, resume)


def _train(recipe: Recipe, stage: Stage, run: dict[str, Any], folder: Path, main: bool, resume: bool) -> dict[str, Any]:
    """`train` in a folder that is held."""
    if main:
        if resume:
            check_recipe(folder, load_run(folder), recipe, run)
        else:
            check_new(folder)
    if resume and (folder / RESULT).is_file():
        return load_result(folder / RESULT)
    ready = _assemble(recipe, stage, run, folder)

    from .checkpoints import UNFINISHED, check, clean, latest, saving

    if main:
        if resume:
            check_same(folder, load_run(folder), ready.began_with)
            if not (folder / RECIPE).is_file():  # killed before it was written
                recipe.save(folder / RECIPE)
        else:
            start(folder, recipe, run, ready.began_with)
        clean(folder, recipe.checkpoints)
    checkpoint = latest(folder) if resume else None
    if checkpoint is not None and main:
        check(checkpoint)
    ready.trainer.args.eval_on_start = checkpoint is None and ready.trainer.eval_dataset is not None
    ready.trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    with saving(folder / "model.safetensors", folder / UNFINISHED):
        _save(ready, folder, folder / UNFINISHED, recipe.lora)
    result = _result(stage.name, folder, ready)
    if main:
        write(folder / RESULT, _json.dumps(result, indent=1))
    return result


def _assemble(recipe: Recipe, stage: Stage, run: dict[str, Any], folder: Path) -> _Run:
    """The trainer, ready to start."""
    from transformers import TrainingArguments, set_seed
    from transformers.trainer_callback import PrinterCallback

    from .checkpoints import CheckpointingTrainer
    from .curves import Curves, Progress
    from .guard import Guard

    dataset = open_data(run["data"])
    set_seed(recipe.seed)  # rows added to the embeddings, and adapters, begin at random
    model, tokenizer = open_model(run["model"], run["tokenizer"], dataset.titles, recipe)
    max_items = recipe.max_items or None
    words = recipe.instruction, recipe.system or None, recipe.separators
    settings = PromptConfig(*words, stage.final, max_items, recipe.items_step)
    packer = settings.packer(dataset.titles, tokenizer, dataset.item_ids)
    began_with = _began_with(run, model, tokenizer, dataset, packer)
    packer.plan = torch.cuda.is_available()
    ours = recipe.attention in ("auto", *KERNELS)
    packer.share = ours if recipe.share is None else recipe.share
    world_size = run["processes"]
    shape = _micro_batch(recipe, world_size)
    most = targets_per_pass(recipe, stage, shape.get("sequences"))
    by = chosen_by(recipe, stage, packer, passes(dataset, "train", most))
    samples = of_split(dataset, "train", packer, most if by == "user" else None, recipe.limit_train)
    if not count_samples(samples):
        raise ValueError(f"data: {run['data']} has no training samples: its split 'train' is empty")
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
    wanted = of_split(dataset, "val", packer, most if by == "user" else None, recipe.limit_val)
    validation = _validation(wanted, run, packer, stage, shape)
    arguments = TrainingArguments(
        **_arguments(recipe, folder, batches.optimizer_steps, evaluated=validation is not None),
        **trainer_arguments(batches),
    )
    if arguments.n_gpu > 1:
        raise ValueError(f"{arguments.n_gpu} GPUs are visible: start one process a GPU with torchrun, or show only one")
    if recipe.gradient_checkpointing:  # by hand: Trainer's argument for it has two names
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if recipe.lora:
        model = add_adapters(model, tokenizer, recipe.lora_rank)
    attachment = attach(model, recipe.attention)
    curves = Curves(folder / "curves.csv", batches.targets)
    trainer = CheckpointingTrainer(
        model,
        arguments,
        data_collator=batches.collate,
        train_dataset=batches,
        eval_dataset=validation,
        callbacks=[Guard(batches), curves, Progress(curves)],
        tokenizer=tokenizer,
        settings=settings,
        keep=recipe.checkpoints,
    )
    trainer.remove_callback(PrinterCallback)
    return _Run(trainer, curves, tokenizer, settings, attachment, batches.number_of_targets, by, began_with)


def _began_with(run: dict[str, Any], model: Any, tokenizer: Any, dataset: Dataset, packer: Packer) -> dict[str, Any]:
    """The fingerprint of what a run starts from. Of a model, its files: rows that were added to its embeddings are
    drawn again, and on another machine not to the last bit. The tiny model follows from recipe and tokenizer."""
    if run["model"] == TINY:
        of_model: dict[str, Any] = {"model": TINY}
    else:
        from transformers.utils import cached_file

        folder = Path(run["model"])
        if not folder.is_dir():
            folder = Path(str(cached_file(run["model"], "config.json"))).parent
        of_model = {"model": type(model).__name__, **fingerprint.of_folder(folder)}
    return {
        **of_model,
        "tokenizer": fingerprint.of_tokenizer(tokenizer),
        "data": fingerprint.of_dataset(dataset),
        **fingerprint.of_packer(packer),
    }


def _validation(
    samples: Samples | Passes, run: dict[str, Any], packer: Packer, stage: Stage, shape: dict[str, Any]
) -> MicroBatches | None:
    """The micro-batches of validation; None, with a warning, where the data have no samples for it."""
    count, world_size = count_samples(samples), run["processes"]
    if not count:
        warnings.warn(f"{run['data']}: its split 'val' is empty; training goes without validation", stacklevel=4)
        return None
    if count < world_size:
        raise ValueError(
            f"data: got {count} validation samples of {run['data']}, expected at least {world_size}, one a process"
        )
    return MicroBatches(samples, packer, stage, **shape, world_size=world_size, evaluation=True)


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


def _arguments(recipe: Recipe, folder: Path, steps: int, *, evaluated: bool) -> dict[str, Any]:
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
        "logging_steps": _steps(recipe.log_steps, steps),
        "eval_strategy": "steps" if evaluated else "no",
        "eval_steps": _steps(recipe.eval_steps, steps),
        "save_steps": _steps(recipe.save_steps, steps),
        "report_to": [name.strip() for name in recipe.report_to.split(",")],
        "disable_tqdm": True,  # our bar knows the rows
        "use_cache": True,  # only written to config.json, for those who generate later; packed calls have no cache
    }


def _steps(count: float, total: int) -> int:
    """The whole number that Trainer makes of a fraction; given one, it would warn of another run when it resumes."""
    return math.ceil(total * count) if count < 1 else int(count)


def _save(run: _Run, folder: Path, unfinished: Path, lora: bool) -> None:
    """The model in plain format: under another name first, `patchrec.json` at the very end."""
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
    open_up(unfinished)
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
        "by": run.by,
        "train_loss": train and train.loss,
        "first_val_loss": losses[0] if losses else None,
        "val_loss": losses[-1] if losses else None,
        "tokens": points[-1].tokens,
        "seconds": points[-1].seconds,
        "rows_per_second": round(run.curves.speed[0], 1),
        "targets_per_second": round(run.curves.speed[1], 1),
        "out": str(folder),
    }
