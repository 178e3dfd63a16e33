# SPDX-License-Identifier: Apache-2.0
"""The data that benchmarks run on: real where it is at hand, generated where it is not."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from patchrec_fast import Catalogue, Prompt, data
from patchrec_fast.data import Dataset
from patchrec_fast.models import vocabulary
from patchrec_fast.ragged import to_offsets

_SYSTEM = "You are a helpful assistant in {noun} recommendations."
_INSTRUCTION = (
    "A user has {past} [HISTORY_SEQUENCE]. Please recommend one {noun} for this user to {verb} "
    "next with its title only and without any explanation."
)
_WORDS = {"goodreads": {"noun": "book", "past": "read", "verb": "read"}}
_MOVIES = {"noun": "movie", "past": "watched", "verb": "watch"}


_VOCABULARY = 128_256  # Llama-3
_DISTINCT = 5000  # token ids that ML-1M's titles use


@dataclass(frozen=True)
class Source:
    """A dataset with its catalogue and prompt; `label` says what it is, in every table."""

    label: str
    dataset: Dataset
    catalogue: Catalogue
    prompt: Prompt
    tokenizer: Any = field(default=None, compare=False)
    words: Mapping[str, str] = field(default_factory=dict, compare=False)  # the prompt's

    @classmethod
    def of(cls, label: str, dataset: Dataset, tokenizer: Any, words: Mapping[str, str]) -> "Source":
        prompt = Prompt(tokenizer, system=_SYSTEM.format(**words), instruction=_INSTRUCTION.format(**words))
        return cls(label, dataset, Catalogue.from_titles(dataset.titles, tokenizer), prompt, tokenizer, words)

    def cut(self) -> "Source":
        """The same with a vocabulary of no other tokens than its own, as `train --model tiny` makes it."""
        prompt = self.prompt
        marks = [prompt.separator, prompt.end_of_turn]
        used = np.concatenate([self.catalogue.token_ids, prompt.prefix, prompt.suffix, marks])
        return Source.of(self.label, self.dataset, vocabulary.cut(self.tokenizer, used), self.words)


def load(name: str, data_dir: str | None, tokenizer_dir: str | None) -> Source:
    """The data set `name` of `data_dir`, or the generated sample where that is None.

    Args:
        name: "ml-1m" or "goodreads".
        data_dir: a folder that holds `name` in the prepared format (`patchrec_fast.data.load`).
        tokenizer_dir: a Hugging Face tokenizer with a chat template; None trains a small one on
            the titles, which cuts them into other numbers of tokens; the label says so.

    Raises:
        FileNotFoundError: a folder that was named is not there.
    """
    dataset = data.generate() if data_dir is None else data.load(Path(data_dir) / name)
    label = "generated sample" if data_dir is None else name
    if tokenizer_dir is None or data_dir is None:
        tokenizer = data.sample_tokenizer(dataset.titles.values())
        label += "" if data_dir is None else " (sample tokenizer)"
    else:
        from transformers import AutoTokenizer

        if not Path(tokenizer_dir).is_dir():
            raise FileNotFoundError(f"tokenizer: {tokenizer_dir} is not a folder")
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    return Source.of(label, dataset, tokenizer, _WORDS.get(name, _MOVIES))


def synthetic(mean_tokens: float) -> Source:
    """Generated users, and titles of random tokens: needs neither data nor a tokenizer.

    Args:
        mean_tokens: of a title; 3.94 in ML-1M, 9.82 in Goodreads. Lengths are 1 + Poisson, ids
            follow Zipf's law over as many different ones as ML-1M's titles use.
    """
    dataset = data.generate()
    rng = np.random.default_rng(0)
    lengths = 1 + rng.poisson(mean_tokens - 1, len(dataset.titles))
    ids = rng.choice(_VOCABULARY, _DISTINCT, replace=False).astype(np.int32)
    share = 1 / np.arange(10, 10 + _DISTINCT)
    catalogue = Catalogue(
        token_ids=rng.choice(ids, lengths.sum(), p=share / share.sum()),
        offsets=to_offsets(lengths).astype(np.int32),
        item_ids=np.array(list(dataset.titles)),
        titles=list(dataset.titles.values()),
    )
    prompt = bare_prompt(ids[:75], _VOCABULARY)
    return Source("synthetic ids", dataset, catalogue, prompt)


def bare_prompt(ids: NDArray[np.int32], vocabulary: int) -> Prompt:
    """A prompt without a tokenizer: 40 of the ids before the history and the others behind it, and three marks behind
    the vocabulary, whose last token ends a turn."""
    made = SimpleNamespace(
        prefix=ids[:40],
        suffix=ids[40:],
        separator=vocabulary + 2,
        end_of_turn=vocabulary - 1,
        separators=True,
        num_embeddings=vocabulary + 3,
    )
    return cast(Prompt, made)
