# SPDX-License-Identifier: Apache-2.0
"""`patchrec-fast train`: one stage of training."""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from .._folders import is_local
from .._options import SAMPLE, STAGES, TINY
from .._text import printable
from ..train.recipes import BUILT_IN, POLICY_KEYS, TYPES, Recipe, load
from .folders import folder
from .models import prompt_line

EXAMPLE = """  patchrec-fast train --model tiny --data sample --stage text --out runs/text
  patchrec-fast train --model path/to/Llama-3.2-1B-Instruct --data path/to/ml-1m --recipe ml-1m \\
    --stage pretrain --out runs/pretrain
  patchrec-fast train --model runs/pretrain --data path/to/ml-1m --recipe ml-1m --stage pft-s --out runs/pft-s
  torchrun --nproc-per-node 4 -m patchrec_fast.cli train ...

Any key of a recipe is a flag too: flags win over the recipe, the recipe over the prompt that the model was trained on,
and that over the defaults."""
_PROMPT = ("instruction", "system", "separators", "max_items", "items_step")
_STAGES_WITH = {
    "keep": ("pft-i",),
    "patch_step": ("pft-i",),
    "group": ("pft-s",),
    "anchor": ("pft-s",),
    "p": ("pretrain", "dropout"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    model = f'folder or hub name; "{TINY}" for a small one made from scratch'
    data = f'folder in the prepared format; "{SAMPLE}" for a generated one'
    add("--model", required=True, type=folder(TINY, hub=True), metavar="MODEL", help=model)
    add("--data", required=True, type=folder(SAMPLE), metavar="DIR", help=data)
    add("--stage", required=True, choices=STAGES, help="what histories become")
    add("--out", required=True, help="folder for the model, its checkpoints and curves; new or empty")
    add("--recipe", help=f"TOML file or {', '.join(BUILT_IN)} (default: {TINY} for the tiny model, else none)")
    add(
        "--tokenizer",
        type=folder(SAMPLE, hub=True),
        metavar="DIR",
        help=f'for the tiny model: folder of a tokenizer that is cut to what the titles need, or "{SAMPLE}" for a '
        f"small one trained on them (default: $PATCHREC_FAST_TOKENIZER; with --data {SAMPLE}, that)",
    )
    add("--resume", action="store_true", help="go on from the last whole checkpoint of --out")
    add("--json", action="store_true", help="print the result as a line of JSON")
    keys = parser.add_argument_group("keys of the recipe (defaults: those without a recipe)")
    for field in dataclasses.fields(Recipe):
        keys.add_argument(f"--{field.name.replace('_', '-')}", **_option(field))


def run(options: argparse.Namespace) -> int:
    flags = {name: value for name in TYPES if (value := getattr(options, name)) is not None}
    source = options.recipe or (TINY if options.model == TINY else None)
    saved = _saved_prompt(options.model)
    base = Recipe().override(saved)
    recipe = (base if source is None else load(source, options.stage, base)).override(flags)
    _check_flags(flags, recipe, options)
    tokenizer = options.tokenizer
    if options.model == TINY and tokenizer is None:
        tokenizer = SAMPLE if options.data == SAMPLE else os.environ.get("PATCHREC_FAST_TOKENIZER")
    main = int(os.environ.get("RANK", 0)) == 0
    for flag, name in (("--model", options.model), ("--tokenizer", tokenizer)):
        if name not in (None, TINY, SAMPLE) and not Path(name).is_dir():
            if main:
                print(f"{flag}: no folder {printable(name)} here, looking for it on the hub", file=sys.stderr)
            is_local(name, True, flag)  # before minutes of reading
    from ..train.run import train

    _quiet()
    if main:
        print(_prompt(recipe, options.stage, saved), file=sys.stderr)
    try:
        result = train(
            recipe,
            options.stage,
            model=options.model,
            data=options.data,
            out=options.out,
            tokenizer=tokenizer,
            resume=options.resume,
        )
    except FloatingPointError as error:
        raise RuntimeError(str(error)) from error  # bad input, not a defect of the program
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("the same command with --resume goes on") from error
    if main:
        print(json.dumps(result) if options.json else _summary(result))
    return 0


def _saved_prompt(model: str) -> dict[str, Any]:
    """The keys of a recipe that the prompt of a former stage gives; none of a model from elsewhere."""
    if model == TINY or not Path(model).is_dir():
        return {}
    from ..layout.config import FILE, PromptConfig

    if not (Path(model) / FILE).is_file():
        return {}
    settings = PromptConfig.load(model)
    texts = {"instruction": settings.instruction, "system": settings.system or ""}
    rest = {"separators": settings.separators, "max_items": settings.max_items or 0, "items_step": settings.step}
    policy = {POLICY_KEYS.get(name, name): value for name, value in vars(settings.policy).items()}
    saved = {**texts, **rest, **policy}
    try:
        Recipe().override(saved)
    except ValueError as error:
        raise ValueError(f"{Path(model) / FILE}: {error}") from error
    return saved


def _check_flags(flags: Mapping[str, Any], recipe: Recipe, options: argparse.Namespace) -> None:
    """Raises ValueError for a flag that nothing would read; a file may hold such keys, for other stages and models."""
    for name in flags:
        flag, stages = f"--{name.replace('_', '-')}", _STAGES_WITH.get(name, STAGES)
        if options.stage not in stages:
            raise ValueError(f"{flag}: --stage {options.stage} has none, expected --stage {' or '.join(stages)}")
        if name in ("hidden", "layers", "heads") and options.model != TINY:
            raise ValueError(f"{flag}: --model {options.model} has a size of its own, expected --model {TINY}")
        if name == "targets_per_pass" and recipe.by == "prompt":
            raise ValueError(f"{flag}: --by prompt reads one target at a time, expected --by user or auto")
        if name == "lora_rank" and not recipe.lora:
            raise ValueError(f"{flag}: without --lora there are no adapters, expected both or none")


def _prompt(recipe: Recipe, name: str, saved: Mapping[str, Any]) -> str:
    """The line of the prompt that is used, with what of it the model was not trained with."""
    policy = recipe.stage(name).final
    read = [*_PROMPT, *(key for key, stages in _STAGES_WITH.items() if name in stages)]
    changed = [key for key in read if key in saved and getattr(recipe, key) != saved[key]]
    shown = [f"{key} {getattr(recipe, key)!r} (the model's: {saved[key]!r})" for key in changed]
    return printable("; ".join([prompt_line(policy, recipe.max_items or None, recipe.items_step), *shown]))


def _option(field: Any) -> dict[str, Any]:
    """The flag of a key; its default is None, which says that it was not given."""
    kinds = [kind for kind in get_args(TYPES[field.name]) or [TYPES[field.name]] if kind is not type(None)]
    default = "" if field.default is None else f" (default: {field.default})"
    text = field.metadata["help"].replace("%", "%%") + default.replace("%", "%%")
    if kinds == [bool]:
        return {"action": argparse.BooleanOptionalAction, "default": None, "help": text}
    return {"type": kinds[0], "metavar": {int: "N", float: "X", str: "TEXT"}[kinds[0]], "help": text}


def _quiet() -> None:
    """No bars of transformers in a log file; our own bar knows by itself."""
    if not sys.stderr.isatty():
        from transformers.utils import logging

        logging.disable_progress_bar()


def _summary(result: dict[str, Any]) -> str:
    given = result["val_loss"] is not None
    losses = f"{result['first_val_loss']:.3f} -> {result['val_loss']:.3f}" if given else "none"
    speed = f"{result['rows_per_second']:,.0f} rows/s"
    if (targets := result.get("targets_per_second")) is not None:  # older runs do not say
        speed += f", {targets:,.1f} targets/s"
    kind = f"{result['stage']} by {result.get('by', 'prompt')}, {result['steps']} steps"
    return f"{printable(result['out'])}: {kind}, validation loss {losses}, {speed}"
