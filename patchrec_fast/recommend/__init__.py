# SPDX-License-Identifier: Apache-2.0
"""Next items from a language model: decoding constrained to the titles of the catalogue.

Importing this does not import transformers.
"""

from ..hf.kv_cache import KVCache as KVCache
from .ranker import Ranked as Ranked
from .ranker import Ranker as Ranker
from .recommendations import Recommendations as Recommendations
from .recommender import Recommender as Recommender
from .trie import Trie as Trie
