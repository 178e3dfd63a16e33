# SPDX-License-Identifier: Apache-2.0
"""Digests that say whether two runs had the same model, prompts and samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ..layout.packing import Packer

if TYPE_CHECKING:
    from torch import nn


def of_model(model: nn.Module) -> str:
    """Of every byte of every parameter and buffer, each with its name, dtype and shape.

    About a second for a billion parameters in 16 bits.
    """
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def of_packer(packer: Packer) -> str:
    """Of everything that decides the prompts and the answers: tokens, titles, policy, length."""
    catalogue, prompt = packer.catalogue, packer.prompt
    words = repr((packer.policy, packer.max_items, prompt.separator, prompt.end_of_turn, prompt.separators))
    return _digest(
        (prompt.prefix, prompt.suffix, catalogue.token_ids, catalogue.offsets, catalogue.item_ids),
        (words, *catalogue.titles),
    )


def of_samples(flat: NDArray[np.int64], offsets: NDArray[np.int64], targets: NDArray[np.int64]) -> str:
    """Of histories and targets, whole."""
    return _digest((flat, offsets, targets))


def _digest(arrays: Iterable[NDArray[np.generic]], words: Iterable[str] = ()) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    for word in words:
        digest.update(word.encode() + b"\0")
    return digest.hexdigest()
