# SPDX-License-Identifier: Apache-2.0
"""What a run starts from: data, tokenizer and model, each by name or path."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import models
from .._folders import check_folder
from .._options import SAMPLE, TARGETS_PER_PASS, TINY
from ..data import Dataset, Samples, generate, load
from ..layout import Packer, Prompt
from ..layout.prompt import END, SEPARATOR, START
from .batches import take
from .by_user import Passes, passes, share_of_rows
from .recipes import Recipe
from .stages import Stage

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PAYS = 0.5  # of the rows of a prompt a target; beside them, targets of one user in a step teach less than others'
_ALL = 2**31 - 1


def open_data(data: str | os.PathLike[str]) -> Dataset:
    """`data.load`, or the generated dataset for "sample".

    Raises:
        FileNotFoundError: no such folder; the message names the nearest.
        ImportError, ValueError: as `data.load`.
    """
    if data == SAMPLE:
        return generate()
    check_folder(data)
    return load(data)


def targets_per_pass(recipe: Recipe, stage: Stage, sequences: int | None) -> int:
    """The most targets of a pass: what the recipe says, as far as a micro-batch of `sequences` has room for it."""
    most = recipe.targets_per_pass
    if most is None:
        most = recipe.max_items or _ALL if stage.titles else TARGETS_PER_PASS
    if stage.titles and recipe.max_items:
        most = min(most, recipe.max_items)
    return most if sequences is None else min(most, sequences)


def chosen_by(recipe: Recipe, stage: Stage, packer: Packer, made: Passes) -> str:
    """Whether a run is by "user" or by "prompt".

    Args:
        made: the passes of the training split.

    Raises:
        ValueError: what the recipe asks for cannot be.
    """
    if stage.titles:
        if recipe.by == "prompt":
            raise ValueError(f"by: stage {stage.name!r} learns many targets in one prompt, expected user, got 'prompt'")
        return "user"
    if recipe.by == "user" and not packer.share:
        raise ValueError(
            f"by: 'user' reads once what prompts share, which attention {recipe.attention!r} with share "
            f"{recipe.share} does not; expected prompt, or attention 'auto'"
        )
    if recipe.by != "auto":
        return recipe.by
    pays = packer.share and len(made.user) and share_of_rows(made, packer, stage.longest) <= _PAYS
    return "user" if pays else "prompt"


def of_split(dataset: Dataset, split: str, packer: Packer, most: int | None, limit: int | None) -> Samples | Passes:
    """What is learnt of a split, or `limit` targets of it.

    Args:
        packer: cuts histories; what it would not keep need not be held.
        most: targets of a pass; None for a prompt each.
    """
    if most is not None:
        made = passes(dataset, split, most)
        return made if limit is None else made.some(limit)
    return some(dataset.split(split, packer.max_items, step=packer.step), limit)


def some(samples: Samples, limit: int | None) -> Samples:
    """`limit` of the samples, evenly spread over the users; all where there are not more.

    Raises:
        ValueError: a limit below 1.
    """
    count = len(samples.targets)
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected at least 1, got {limit}")
    if limit is None or limit >= count:
        return samples
    return take(samples, np.arange(limit) * count // limit)


def open_model(
    model: str | os.PathLike[str],
    tokenizer: str | os.PathLike[str] | None,
    titles: Mapping[int, str],
    recipe: Recipe,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer, with the marks of a prompt in both.

    Args:
        model: a Hugging Face folder or hub name, or "tiny" for one made from scratch.
        tokenizer: for "tiny", what is cut: a folder, or "sample" for the one of the generated dataset. Another model
            has its own.
        titles: item id -> title.
        recipe: gives the texts, and the sizes of the tiny model.

    Returns:
        The model, in float32 on the CPU, and its tokenizer.

    Raises:
        FileNotFoundError, OSError, ValueError: as `patchrec_fast.models.open_model`.
        ValueError: a tokenizer missing, or given where the model has one, or without chat template.
    """
    import torch

    texts: dict[str, Any] = {"system": recipe.system or None, "instruction": recipe.instruction}
    if model == TINY:
        if tokenizer is None:
            raise ValueError('tokenizer: expected a folder, or "sample": the tiny model has none of its own')
        texts.update(hidden=recipe.hidden, layers=recipe.layers, heads=recipe.heads, seed=recipe.seed)
        return models.tiny_model(titles, models.tokenizer_for(tokenizer, titles, hub=True), **texts)
    if tokenizer is not None:
        raise ValueError(f"tokenizer: {model} has its own, expected none; got {tokenizer}")
    made, own = models.open_model(model, torch.float32, hub=True)
    models.fit_vocabulary(made, Prompt(own, **texts))
    return made, own


def add_adapters(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rank: int) -> PeftModel:
    """Low-rank adapters on every linear layer; of the embeddings, only the rows of the marks learn.

    Raises:
        ImportError: peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError("lora needs peft: pip install peft") from error

    marks = tokenizer.convert_tokens_to_ids([START, END, SEPARATOR])
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
        trainable_token_indices=marks,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft asks for the older name of an attribute of transformers, and takes what it says
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        return get_peft_model(model, config)
