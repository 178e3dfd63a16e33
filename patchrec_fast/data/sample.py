# SPDX-License-Identifier: Apache-2.0
"""A made-up dataset with the statistics of MovieLens-1M, and a tokenizer for it.

With them everything runs without any outside file. Both are deterministic.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .. import _files
from ..ragged import to_offsets
from .dataset import Dataset, at_least
from .splits import split_by_time

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Measured on MovieLens-1M's ratings above 3: user lengths are close to log-normal with these
# moments of the logarithm, their mean is 95.3, and one user has 1,435 items.
_LOG_LENGTH_MEAN, _LOG_LENGTH_STD = 4.09, 0.97
_SHORTEST, _LONGEST = 4, 1435
_MAX_WORDS = 13
_MOST_USERS, _MOST_ITEMS = 10**7, 10**6  # of a set that is made in memory

_ONSETS = (*"bcdfghjklmnprstvwz", "bl", "br", "ch", "cl", "dr", "gr", "pr", "sh", "st", "th", "tr")
_NUCLEI = (*"aeiou", "ai", "ea", "ou", "ee")
_CODAS = ("", "", "", *"nrlsmx", "ck", "nd", "st")
_SMALL_WORDS = ("the", "of", "and", "in", "a", "to", "for", "with")


def generate(seed: int = 0, users: int = 1000, items: int = 2000) -> Dataset:
    """Invent a dataset.

    User lengths are log-normal with MovieLens-1M's moments (mean about 95) and the first user has
    1,435 items (or all of them, where there are fewer); popularity follows Zipf's law; nobody has
    an item twice; users come and go over time, and the splits are 48:1:1 by time. Some titles are
    sequels ("Name 2"), so that a title can be the beginning of another, and all are different.

    Args:
        seed: the same seed gives the same dataset.
        users: how many, 1 to 10 million.
        items: how many, 10 to 1 million.

    Raises:
        ValueError: a negative seed, too few or too many users or items.
        TypeError: one that is no whole number.
    """
    for name, value, least, most in (("users", users, 1, _MOST_USERS), ("items", items, 10, _MOST_ITEMS)):
        if at_least(value, least, name) > most:
            raise ValueError(f"{name}: expected at most {most:,}, got {value}")
    seed, users, items = at_least(seed, 0, "seed"), int(users), int(items)
    rng = np.random.default_rng(seed)
    names = _titles(rng, items)
    lengths = np.rint(rng.lognormal(_LOG_LENGTH_MEAN, _LOG_LENGTH_STD, users)).astype(np.int64)
    lengths[0] = _LONGEST
    lengths = lengths.clip(_SHORTEST, min(_LONGEST, items))
    offsets = to_offsets(lengths)

    # The n largest of log-weight + Gumbel noise are n draws without replacement (Efraimidis and
    # Spirakis 2006). Zipf's law gets MovieLens's flat head and thin tail.
    rank = rng.permutation(items) / items
    log_weight = -np.log(rank + 0.015) - 1.5 * rank
    sequences = [np.argsort(-(log_weight + rng.gumbel(size=items)))[:n].astype(np.int32) for n in lengths]
    for sequence in sequences:
        rng.shuffle(sequence)
    return Dataset(
        items=np.concatenate(sequences),
        offsets=offsets,
        titles=dict(enumerate(names)),
        splits=split_by_time(_times(rng, offsets), offsets),
    )


def sample_tokenizer(titles: Iterable[str] | None = None) -> PreTrainedTokenizerFast:
    """Train a small byte-level BPE tokenizer with Llama-3's kind of special tokens and chat
    template.

    Args:
        titles: what it is trained on; None takes the titles of `generate()`.

    Returns:
        A Hugging Face fast tokenizer of about 2,000 tokens; any text can be encoded, byte by byte
        at worst.

    Raises:
        ImportError: transformers (with tokenizers) is not installed.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if titles is None:
        titles = generate(users=1).titles.values()
    special = {
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "pad_token": "<|pad_id|>",
    }
    headers = ["<|start_header_id|>", "<|end_header_id|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        min_frequency=2,
        show_progress=False,
        special_tokens=[*special.values(), *headers],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(titles, trainer)
    bos = special["bos_token"]
    bpe.post_processor = processors.TemplateProcessing(  # as Llama-3's: a text begins with one
        single=f"{bos} $A", special_tokens=[(bos, bpe.token_to_id(bos))]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, clean_up_tokenization_spaces=False, **special)
    tokenizer.add_tokens(headers, special_tokens=True)
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: str | os.PathLike[str]) -> None:
    """Saves a tokenizer; each file appears whole or not at all.

    Raises:
        FileExistsError: a file in the folder's place, or a model in the folder, whose own tokenizer would be lost.
        OSError: a file that cannot be written.
    """
    if not os.fspath(folder):
        raise ValueError("tokenizer: expected a path, got ''")
    target = Path(os.path.realpath(folder))
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"{target}: there already, and not a folder")
    if (target / "config.json").exists():
        raise FileExistsError(f"{target}: holds a model, whose tokenizer would be replaced; choose another folder")
    with tempfile.TemporaryDirectory() as made:
        tokenizer.save_pretrained(made)
        for file in sorted(Path(made).iterdir()):
            _files.write(target / file.name, file.read_bytes())


_CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{% if message.role == 'system' and date_string is defined %}"
    "Date: {{ date_string }}\n\n"
    "{% endif %}"
    "{{ message.content | trim }}{{ eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def _titles(rng: np.random.Generator, count: int) -> list[str]:
    """`count` different titles of 1 to 13 words, most of them of two to four."""
    words = _words(rng, 600)
    zipf = 1 / np.arange(2, len(words) + 2)
    zipf /= zipf.sum()
    titles: list[str] = []
    known: set[str] = set()

    def add(title: str) -> None:
        if title not in known:
            known.add(title)
            titles.append(title)

    while len(titles) < count:
        if titles and rng.random() < 0.05:
            stem = titles[rng.integers(len(titles))]
            add(f"{stem} {rng.integers(2, 5)}")
            continue
        long = int(rng.integers(3, 10)) if rng.random() < 0.03 else 0
        length = min(1 + int(rng.poisson(2.1)) + long, _MAX_WORDS)
        chosen = [words[i].capitalize() for i in rng.choice(len(words), length, p=zipf)]
        for place in range(1, length - 1):
            if rng.random() < 0.4:
                chosen[place] = _SMALL_WORDS[rng.integers(len(_SMALL_WORDS))]
        add(" ".join(chosen))
    return titles


def _words(rng: np.random.Generator, count: int) -> list[str]:
    """`count` different pronounceable words of one to three syllables."""
    words: dict[str, None] = {}
    while len(words) < count:
        syllables = (
            "".join(part[rng.integers(len(part))] for part in (_ONSETS, _NUCLEI, _CODAS))
            for _ in range(rng.integers(1, 4))
        )
        words["".join(syllables)] = None
    return list(words)


def _times(rng: np.random.Generator, offsets: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N,) a time for every interaction, increasing along each user's sequence."""
    lengths = np.diff(offsets)
    user = np.repeat(np.arange(len(lengths)), lengths)
    spent = np.cumsum(rng.exponential(size=offsets[-1]))
    spent -= spent[offsets[:-1]][user]
    return rng.uniform(0, 100 * len(lengths) ** 0.5, len(lengths))[user] + spent
