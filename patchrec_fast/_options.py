# SPDX-License-Identifier: Apache-2.0
"""Names and defaults that options of the command line take, apart from what they stand for: `--help` needs no torch."""

from typing import Literal

SAMPLE = "sample"
"""Named as a tokenizer: a small one, trained on the titles; as data: the generated dataset."""
TINY = "tiny"
"""Named as a model: a small one, made from scratch."""

PLACEHOLDER = "[HISTORY_SEQUENCE]"
INSTRUCTION = f"Someone has chosen {PLACEHOLDER}. Which one will they choose next? Answer with its title only."
SYSTEM = "You recommend what fits somebody's taste."
"""The words around a history where a caller has none of their own."""

Anchor = Literal["newest", "oldest"]
STAGES = ("text", "pretrain", "pft-i", "pft-s", "dropout", "history")
BY = ("auto", "user", "prompt")
TARGETS_PER_PASS = 16

LONG = 500
"""The paper's Figure 8 is of ML-1M's users with more interactions than this."""

MOVIELENS = ("ml-100k", "ml-1m", "ml-20m", "ml-25m", "ml-32m", "ml-latest-small")
"""What can be downloaded."""
BOOK_TIMES = ("date_added", "date_updated")
"""Of Goodreads: what may order a user's books."""
Split = Literal["time", "leave-one-out", "files"]
Parentheses = Literal["keep", "year", "drop"]
Articles = Literal["keep", "english", "all"]
