# SPDX-License-Identifier: Apache-2.0
"""Decoding over the catalogue: every answer is a title that exists. Importing this does not import transformers."""

from .recommender import Recommendations as Recommendations
from .recommender import Recommender as Recommender
from .trie import Trie as Trie
