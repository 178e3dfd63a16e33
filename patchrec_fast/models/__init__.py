# SPDX-License-Identifier: Apache-2.0
"""A model and its tokenizer, opened or made: one place for every command. Importing this imports no transformers."""

from .opening import SAMPLE as SAMPLE
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
