# SPDX-License-Identifier: Apache-2.0
"""What a run starts from: data, tokenizer and model, each by name or path."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import models
from ..data import Dataset, Samples, generate, load
from ..layout import Prompt
from ..layout.prompt import END, SEPARATOR, START
from ..models import SAMPLE
from .batches import take
from .recipes import Recipe

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TINY = "tiny"


def open_data(data: str | os.PathLike[str]) -> Dataset:
    """`data.load`, or the generated dataset for "sample"."""
    return generate() if data == SAMPLE else load(data)


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
    return get_peft_model(model, config)
