# SPDX-License-Identifier: Apache-2.0
"""Datasets on disk and made up. Imports nothing from the rest of the package."""

from .dataset import Dataset as Dataset
from .dataset import Samples as Samples
from .sample import generate as generate
from .sample import sample_tokenizer as sample_tokenizer
from .tables import load as load
from .tables import save as save
