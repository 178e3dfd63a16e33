# SPDX-License-Identifier: Apache-2.0
"""A model and its tokenizer, opened or made: one place for every command.

A name is imported when it is first asked for; none imports transformers.
"""

from typing import TYPE_CHECKING

from .._lazy import lazily

if TYPE_CHECKING:
    from .opening import fit_vocabulary as fit_vocabulary
    from .opening import open_model as open_model
    from .opening import open_tokenizer as open_tokenizer
    from .opening import open_trained as open_trained
    from .opening import tokenizer_for as tokenizer_for
    from .saving import load as load
    from .saving import save as save
    from .shapes import SHAPES as SHAPES
    from .shapes import random_model as random_model
    from .tiny import tiny_model as tiny_model

_PLACES = {
    "SHAPES": "shapes",
    "fit_vocabulary": "opening",
    "load": "saving",
    "open_model": "opening",
    "open_tokenizer": "opening",
    "open_trained": "opening",
    "random_model": "shapes",
    "save": "saving",
    "tiny_model": "tiny",
    "tokenizer_for": "opening",
}

if not TYPE_CHECKING:
    __getattr__ = lazily(__name__, _PLACES)
