# SPDX-License-Identifier: Apache-2.0
"""A trained folder and its data -> a recommender: what `evaluate`, `recommend` and `profile` start with."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..hf.settings import Settings
from ..train.stages import stage
from ..train.start import SAMPLE, open_data

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..data import Dataset
    from ..recommend import Recommender

POLICIES = ("text", "pft-i", "pft-s")
DTYPES: dict[str | None, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, its data, and where it runs."""
    add = parser.add_argument
    add("--model", required=True, help="folder that patchrec-fast train wrote")
    add_data_argument(parser)
    add_device_arguments(parser)
    prompts = parser.add_argument_group("prompts other than those that the model was trained on")
    prompts.add_argument("--policy", choices=POLICIES, help="what histories become")
    prompts.add_argument("--keep", type=int, default=5, help="items that pft-i keeps as text (default: 5)")
    prompts.add_argument("--group", type=int, default=5, help="items of a session of pft-s (default: 5)")
    prompts.add_argument("--max-items", type=int, help="newest items of a history; 0 for all")


def add_data_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", required=True, help=f'folder in the prepared format; "{SAMPLE}" for the generated dataset'
    )


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--device", default="auto", help='such as "cpu" or "cuda:1" (default: the GPU where there is one)')
    add("--dtype", choices=tuple(DTYPES), help="of the weights (default: as they were saved)")


def open_recommender(options: argparse.Namespace) -> tuple[Recommender, Dataset]:
    """The recommender of these options, and the data that its titles are of.

    Raises:
        FileNotFoundError, OSError: no such folder, or a file of it is missing.
        ValueError: a damaged file; a model with fewer embeddings than its prompts need.
    """
    from ..recommend import Recommender

    settings = _settings(options)
    dataset = open_data(options.data)
    model, tokenizer = open_model(options.model, options.dtype)
    packer = settings.packer(dataset.titles, tokenizer)
    held = model.get_input_embeddings().num_embeddings
    if held < packer.prompt.num_embeddings:
        raise ValueError(
            f"{options.model}: the model has {held} embeddings, expected at least {packer.prompt.num_embeddings}"
        )
    return Recommender(model.to(device(options.device)), packer), dataset


def device(name: str) -> torch.device:
    """A device by name; "auto" is the GPU where there is one.

    Raises:
        ValueError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        raise ValueError(f"--device: {name!r} cannot be used here ({error})") from error
    return torch.device(name)


def _settings(options: argparse.Namespace) -> Settings:
    settings = Settings.load(options.model)
    changed: dict[str, Any] = {}
    if options.policy is not None:
        changed["policy"] = stage(options.policy, keep=options.keep, group=options.group).final
    if options.max_items is not None:
        changed["max_items"] = options.max_items or None
    return dataclasses.replace(settings, **changed)


def open_model(folder: str, dtype: str | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A folder's model, in evaluation mode on the CPU, and its tokenizer.

    Raises:
        FileNotFoundError, OSError: no such folder, or a file of it is missing.
        ValueError: a damaged file.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    check_folder(folder, "config.json")
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES.get(dtype, "auto"), local_files_only=True)
    except SafetensorError as error:
        raise ValueError(f"{folder}: a file of weights is damaged ({error})") from error
    check_folder(folder, "tokenizer_config.json")
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def check_folder(folder: str, file: str) -> None:
    """A missing folder is said at once: transformers would look for it on a hub first."""
    if not (Path(folder) / file).is_file():
        raise FileNotFoundError(f"{folder}: no {file} there, expected a folder in Hugging Face format")
