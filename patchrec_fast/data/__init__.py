# SPDX-License-Identifier: Apache-2.0
"""Datasets: raw ratings to the prepared format, on disk, and made up.

Imports only `_files` of the rest of the package.
"""

from .columns import Columns as Columns
from .dataset import Dataset as Dataset
from .dataset import Samples as Samples
from .download import download as download
from .goodreads import Goodreads as Goodreads
from .ids import Ids as Ids
from .movielens import MovieLens as MovieLens
from .prepare import RULES as RULES
from .prepare import Prepared as Prepared
from .prepare import Rules as Rules
from .prepare import prepare as prepare
from .sample import generate as generate
from .sample import sample_tokenizer as sample_tokenizer
from .stats import statistics as statistics
from .tables import load as load
from .tables import save as save
