# SPDX-License-Identifier: Apache-2.0
"""The prompt around a history: a chat template rendered once and cut at the place of the
history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._options import PLACEHOLDER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

START, END, SEPARATOR = "<|start_seq_id|>", "<|end_seq_id|>", "<|item_sep_id|>"
_ANSWER = "An Answer"


class Prompt:
    """The tokens before and after a history, and the marks between its units.

    Attributes:
        prefix: (P,) int32, everything before the history; ends with `<|start_seq_id|>`.
        suffix: (S,) int32, everything after it; begins with `<|end_seq_id|>`, ends with the
            generation prompt.
        separator: the id of `<|item_sep_id|>`, which stands between consecutive units.
        end_of_turn: the id that the template puts after an assistant's answer.
        separators: False leaves out the separators next to a patch.
        num_embeddings: the number of rows that the embedding table needs, one more than the largest id with the marks
            (`len(tokenizer)` is less where ids have holes).
        tokenizer: as given; a pickle, such as a data loader's worker gets, leaves it out: None.
        system, instruction: as given.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        system: str | None = None,
        instruction: str,
        separators: bool = True,
        date: str = "26 Jul 2024",
    ) -> None:
        """Render and cut the template.

        Args:
            tokenizer: a Hugging Face tokenizer with a chat template. **It is changed**: the three
                marks are added as special tokens where they are missing, so resize the model's
                embeddings to `num_embeddings` afterwards.
            system: the system message; None renders none.
            instruction: the user's message, with `[HISTORY_SEQUENCE]` once where the history goes.
            separators: False leaves out the separators next to a patch (our own option, not the
                paper's).
            date: given to the template as `date_string`, so that prompts do not change from day to
                day.

        Raises:
            TypeError: text that is not a string.
            ValueError: no or several placeholders; no chat template, or one that loses the history,
                prints today's date whatever it is told, or ends an answer with ordinary text; a tokenizer that
                gives a mark the id of another token, or cuts it up.
        """
        given = {"instruction": instruction, "date": date}
        if system is not None:
            given["system"] = system
        for name, text in given.items():
            if not isinstance(text, str):
                raise TypeError(f"{name}: expected a string, got {text!r} ({type(text).__name__})")
        if (count := instruction.count(PLACEHOLDER)) != 1:
            raise ValueError(
                f"instruction: expected {PLACEHOLDER} exactly once, got it {count} times in {instruction!r}"
            )
        _check_template(tokenizer)

        messages = [] if system is None else [{"role": "system", "content": system}]
        messages += [{"role": "user", "content": instruction.replace(PLACEHOLDER, START + END)}]
        question = _render(tokenizer, messages, date, answered=False)
        if (count := question.count(START + END)) != 1:
            raise ValueError(
                f"tokenizer: its chat template shows the history {count} times, expected once: {question!r}"
            )
        before, after = question.split(START + END)
        messages += [{"role": "assistant", "content": _ANSWER}]
        ending = _render(tokenizer, messages, date, answered=True).rpartition(_ANSWER)[2]
        ending_ids = _tokenize(tokenizer, ending)
        if not len(ending_ids) or int(ending_ids[0]) not in tokenizer.added_tokens_decoder:
            raise ValueError(
                f"tokenizer: its chat template ends an answer with {ending!r}, expected a special end-of-turn token"
            )

        tokenizer.add_tokens([START, END, SEPARATOR], special_tokens=True)
        self.tokenizer: PreTrainedTokenizerBase | None = tokenizer
        self.system, self.instruction = system, instruction
        self.prefix: NDArray[np.int32] = _tokenize(tokenizer, before + START)
        self.suffix: NDArray[np.int32] = _tokenize(tokenizer, END + after)
        self.separator: int = int(tokenizer.convert_tokens_to_ids(SEPARATOR))
        self.end_of_turn: int = int(ending_ids[0])
        self.separators: bool = bool(separators)
        self.num_embeddings: int = _check_marks(tokenizer)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "tokenizer": None}

    def __repr__(self) -> str:
        return (
            f"Prompt(prefix={len(self.prefix)} tokens, suffix={len(self.suffix)} tokens, "
            f"separator={self.separator}, end_of_turn={self.end_of_turn}, "
            f"separators={self.separators})"
        )


def _check_marks(tokenizer: PreTrainedTokenizerBase) -> int:
    """That each mark is one token with an id of its own; one more than the largest id."""
    vocabulary = tokenizer.get_vocab()
    marks = {mark: int(tokenizer.convert_tokens_to_ids(mark)) for mark in (START, END, SEPARATOR)}
    for token, place in vocabulary.items():
        for mark, own in marks.items():
            if place == own and token != mark:
                raise ValueError(
                    f"tokenizer: it gives {mark} the id {own}, which {token!r} has; its ids have holes (the largest of "
                    f"{len(vocabulary)} tokens is {max(vocabulary.values())}), so number them without"
                )
    found = _tokenize(tokenizer, "".join(marks)).tolist()
    if found != list(marks.values()):
        raise ValueError(f"tokenizer: expected {', '.join(marks)} to be one token each, got the ids {found}")
    return max(len(tokenizer), max(vocabulary.values()) + 1)


def _check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise ValueError("tokenizer: it has no chat template; set tokenizer.chat_template") from error
    if "strftime_now" in template and "date_string" not in template:
        raise ValueError(
            "tokenizer: its chat template prints today's date and takes no date_string, so that "
            "training and evaluation would see different prompts; write a date in place of "
            "strftime_now(...) in tokenizer.chat_template"
        )


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], date: str, answered: bool) -> str:
    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=not answered, date_string=date
        )
    except ImportError:  # jinja2 is missing, and transformers says so
        raise
    except Exception as error:  # a template is code and may raise anything: "no system role"
        roles = [message["role"] for message in messages]
        raise ValueError(f"tokenizer: its chat template fails on {roles}: {error}") from error


def _tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> NDArray[np.int32]:
    return np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)
