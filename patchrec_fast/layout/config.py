# SPDX-License-Identifier: Apache-2.0
"""`patchrec.json` beside a model: the prompt and the policy that it was trained with.

A model folder is plain Hugging Face format; this one file more lets evaluation and recommendation build the same
prompts again.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import _files, _json
from .._check import check_count
from .._options import PLACEHOLDER
from .catalogue import Catalogue
from .packing import Packer, check_step
from .policies import Dropout, ItemPatches, Policy, RandomItemPatches, SessionPatches, Text
from .prompt import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..data import Ids

FILE = "patchrec.json"
POLICIES: dict[str, type] = {
    policy.__name__: policy for policy in (Text, ItemPatches, SessionPatches, RandomItemPatches, Dropout)
}


@dataclass(frozen=True)
class PromptConfig:
    """How histories become prompts.

    Attributes:
        instruction, system, separators: as `Prompt` takes them.
        policy: one of the library's five.
        max_items: K, the newest items of a history that are kept; None keeps all.
        step: the oldest items leave so many at a time, as `Packer` takes it.

    Raises:
        TypeError, ValueError: a field of another type or out of range; the message names it.
    """

    instruction: str
    system: str | None = None
    separators: bool = True
    policy: Policy = dataclasses.field(default_factory=Text)
    max_items: int | None = 100
    step: int = 1

    def __post_init__(self) -> None:
        texts = [("instruction", self.instruction)] + ([] if self.system is None else [("system", self.system)])
        for name, text in texts:
            if not isinstance(text, str):
                raise TypeError(f"{name}: expected a string, got {text!r}")
        if self.instruction.count(PLACEHOLDER) != 1:
            raise ValueError(f"instruction: expected {PLACEHOLDER} exactly once, got {self.instruction!r}")
        if not isinstance(self.separators, bool):
            raise TypeError(f"separators: expected true or false, got {self.separators!r}")
        if type(self.policy) not in POLICIES.values():
            raise TypeError(f"policy: expected one of {', '.join(POLICIES)}, got {self.policy!r}")
        if self.max_items is not None:
            check_count("max_items", self.max_items, minimum=1)
        check_step(self.step, self.max_items)

    def prompt(self, tokenizer: PreTrainedTokenizerBase) -> Prompt:
        """What stands around a history. The tokenizer gets the marks where they are missing, as in `Prompt`."""
        return Prompt(tokenizer, system=self.system, instruction=self.instruction, separators=self.separators)

    def packer(self, titles: Mapping[int, str], tokenizer: PreTrainedTokenizerBase, ids: Ids | None = None) -> Packer:
        """The packer of these prompts, of a tokenizer as `prompt` takes it; `ids` as `Catalogue.from_titles` does."""
        prompt = self.prompt(tokenizer)
        catalogue = Catalogue.from_titles(titles, tokenizer, ids)
        return Packer(catalogue, prompt, self.policy, self.max_items, step=self.step)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; the policy by its name, with its fields."""
        fields: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**fields, "policy": {"name": type(self.policy).__name__, **vars(self.policy)}}

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `patchrec.json` into a folder; whole or not at all."""
        _files.write(Path(folder) / FILE, json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> PromptConfig:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not JSON; a missing, unknown or wrong entry.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file, expected a model folder that patchrec-fast train wrote")
        what = "settings of patchrec_fast"
        fields = _json.load(path, {"instruction": str, "policy": {"name": str}}, what)
        try:
            policy = fields.pop("policy")
            made = POLICIES[policy.pop("name")](**policy)
            return cls(**fields, policy=made)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}: not {what} ({type(error).__name__}: {error})") from error
