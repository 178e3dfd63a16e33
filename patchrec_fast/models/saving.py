# SPDX-License-Identifier: Apache-2.0
"""A model with its tokenizer and its prompts, in a folder: from Python to the commands, and back."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _files
from ..hf.modules import unwrapped
from ..layout import Packer
from ..layout.config import FILE, PromptConfig
from .opening import Name, open_trained

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..data import Ids

_OF_MODEL = re.compile(r"(generation_)?config\.json|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


def save(folder: Name, model: Any, packer: Packer) -> None:
    """Writes a model folder that `load` and the commands open (`patchrec-fast recommend --model FOLDER`): weights and
    tokenizer in Hugging Face format, and `patchrec.json`, how the packer's prompts are made.

    The folder appears whole or not at all; one that `save` wrote before is replaced. The catalogue is not in it: it
    comes with the data.

    Args:
        folder: new or empty, or of an earlier `save`.
        model: a causal language model of transformers, attached or not.
        packer: whose prompts the model was trained on.

    Raises:
        TypeError: a policy that is not one of the library's; no model of transformers.
        ValueError: adapters that are not merged; fewer embeddings than the prompt has tokens; a packer whose prompts
            or titles' tokens are not those that its tokenizer makes, or that has lost its tokenizer to a pickle; a
            folder that holds anything else.
        OSError: it cannot be written; what was there before is kept.
    """
    model, target = unwrapped(model), Path(os.path.realpath(folder))
    if not hasattr(model, "save_pretrained") or not hasattr(model, "config"):
        raise TypeError(f"model: expected a causal language model of transformers, got {type(model).__name__}")
    if getattr(model, "peft_config", None):
        raise ValueError("model: it has adapters; merge them first: model = model.merge_and_unload()")
    if (rows := model.get_input_embeddings().num_embeddings) < packer.prompt.num_embeddings:
        raise ValueError(
            f"model: its {rows} embeddings do not cover the prompt's {packer.prompt.num_embeddings} tokens; call "
            "model.resize_token_embeddings(prompt.num_embeddings)"
        )
    settings, tokenizer = _settings(packer)
    unfinished = target.with_name(f".{target.name}.part-{secrets.token_hex(8)}")
    try:
        with _files.naming(folder, unfinished):
            unfinished.mkdir(parents=True)
            tokenizer.save_pretrained(unfinished)
            settings.save(unfinished)
            _check_place(target, {path.name for path in unfinished.iterdir()})
            model.save_pretrained(unfinished)
            open_up(unfinished)
            _replace(target, unfinished)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def load(
    folder: Name, titles: Mapping[int, str], ids: Ids | None = None, *, dtype: torch.dtype | str = "auto"
) -> tuple[PreTrainedModel, Packer]:
    """Opens what `save` or `patchrec-fast train` wrote: the model, in evaluation mode on the CPU, and the packer of its
    prompts.

    Args:
        folder: the model's.
        titles: item id -> title, such as `Dataset.titles`: what can be recommended.
        ids: `Dataset.item_ids`, for answers in own ids (`Recommendations.ids`); None where they are the numbers.
        dtype: of the weights; "auto" as they were saved.

    Raises:
        FileNotFoundError, ValueError: no such folder, a damaged file, or one of another model; the message names it.
        TypeError, ValueError: as `Catalogue.from_titles`.
    """
    model, tokenizer = open_trained(folder, dtype)
    return model, PromptConfig.load(folder).packer(titles, tokenizer, ids)


def open_up(folder: Path) -> None:
    """Gives every file the mode that the user's umask gives: safetensors makes private ones."""
    mode = (folder / "tokenizer_config.json").stat().st_mode & 0o777  # written by Python's open
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _settings(packer: Packer) -> tuple[PromptConfig, PreTrainedTokenizerBase]:
    """What makes the packer's prompts again, tried.

    Raises:
        TypeError, ValueError: as `save`.
    """
    prompt, catalogue, tokenizer = packer.prompt, packer.catalogue, packer.prompt.tokenizer
    if tokenizer is None:
        raise ValueError("packer: a pickle has taken its prompt's tokenizer; give the packer that was pickled")
    words = prompt.instruction, prompt.system, prompt.separators
    settings = PromptConfig(*words, packer.policy, packer.max_items, packer.step)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the titles: it was said when the catalogue was made
        again = settings.packer(dict(zip(catalogue.item_ids.tolist(), catalogue.titles, strict=True)), tokenizer)
    if not all(
        np.array_equal(getattr(again.prompt, name), getattr(prompt, name))
        for name in ("prefix", "suffix", "separator", "end_of_turn")
    ):
        raise ValueError(
            f"packer: {FILE} keeps the instruction, the system message and separators, and they make another prompt "
            "than the packer's; was it made with another date, or has its tokenizer changed since?"
        )
    if not np.array_equal(again.catalogue.token_ids, catalogue.token_ids):
        raise ValueError("packer: its titles' tokens are not those of its prompt's tokenizer; make both with one")
    return settings, tokenizer


def _check_place(target: Path, written: set[str]) -> None:
    """Raises ValueError where a folder holds anything but what `save` writes."""
    there = (
        {path.name for path in target.iterdir()} if target.is_dir() else {target.name} & {*os.listdir(target.parent)}
    )
    strangers = sorted(there - written - {name for name in there if _OF_MODEL.fullmatch(name)})
    if strangers or (there and FILE not in there):
        held = ", ".join((strangers or sorted(there))[:3])
        raise ValueError(f"folder: {target} holds {held}, which save() did not write; give a new folder")


def _replace(target: Path, unfinished: Path) -> None:
    """Puts a finished folder in its place."""
    before = unfinished.with_name(f"{unfinished.name}.before")
    if target.exists():
        os.rename(target, before)
    try:
        os.rename(unfinished, target)
    except BaseException:
        if before.exists():
            os.rename(before, target)
        raise
    shutil.rmtree(before, ignore_errors=True)
