# SPDX-License-Identifier: Apache-2.0
"""Every number of a training run in one place: the defaults here, a TOML file over them, flags over that.

A file holds keys of `Recipe`, and may hold a table a stage whose keys win in that stage:

    learning_rate = 1e-5
    [stage.pft-s]
    learning_rate = 3e-6
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from .._files import write
from .._options import BY, INSTRUCTION, STAGES, SYSTEM, TARGETS_PER_PASS, Anchor
from .._text import near

if TYPE_CHECKING:
    from .stages import Stage

FOLDER = Path(__file__).parent / "recipes"
_SOME = 1e-9  # more than nothing
_MANY = 2**31 - 1  # more than anybody has of anything that is counted
POLICY_KEYS = {"step": "patch_step"}
"""The key of a policy's field where it has another name."""
BUILT_IN = tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def _key(default: Any, text: str, least: float | None = None, most: float | None = None) -> Any:
    """A field with its help, its smallest value and its largest; that of a whole number is never above `_MANY`."""
    if least is not None and most is None:
        most = sys.float_info.max if isinstance(default, float) else _MANY
    return dataclasses.field(default=default, metadata={"help": text, "least": least, "most": most})


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are the paper's where it gives them. Each key's meaning is its `metadata["help"]`.

    Raises:
        TypeError: a value of another type.
        ValueError: one below its range, or none or both of `batch` and `rows`.
    """

    instruction: str = _key(INSTRUCTION, "the user's message, [HISTORY_SEQUENCE] once where the history goes")
    system: str = _key(SYSTEM, "the system message; empty for none")
    separators: bool = _key(True, "a separator next to patches too")
    max_items: int = _key(100, "K: newest items of a history that a prompt holds; 0 for all", 0)
    keep: int = _key(5, "N: newest items that stay text (pft-i)", 0)
    group: int = _key(5, "g: items of a session (pft-s)", 1)
    items_step: int = _key(1, "oldest items leave a prompt so many at a time: K to K + this - 1 are held", 1)
    patch_step: int = _key(1, "titles become patches so many at a time (pft-i)", 1)
    anchor: str = _key("newest", "which item sessions are counted from (pft-s): newest, or oldest, and none changes")
    p: float | None = _key(None, "constant probability of a patch (pretrain), of leaving out (dropout)", 0, 1)

    learning_rate: float = _key(1e-5, "peak of the learning rate", 0)
    schedule: str = _key("cosine", "transformers' name of the learning-rate schedule")
    warmup: float = _key(0.05, "fraction of the steps in which the learning rate rises", 0)
    clip: float = _key(0.3, "largest norm of the gradient; 0 clips nothing", 0)
    weight_decay: float = _key(0.0, "AdamW's weight decay", 0)
    by: str = _key("auto", "what is read at once: prompt, one target; user, a run of targets; auto, which is cheaper")
    targets_per_pass: int | None = _key(
        None, f"most targets of a user read at once; by default {TARGETS_PER_PASS}, in stage history max_items", 1
    )
    batch: int | None = _key(64, "targets an optimizer step, over all processes", 1)
    rows: int | None = _key(None, "instead of batch: rows that fill a micro-batch of one process", 1)
    accumulation: int = _key(1, "micro-batches an optimizer step of one process", 1)
    epochs: int = _key(1, "passes over the training split", 1, 10_000)
    steps: int | None = _key(None, "so many optimizer steps in all: fewer than the epochs have, or further epochs", 1)
    seed: int = _key(0, "of weights, order and random patches", 0, 2**32 - 1)
    limit_train: int | None = _key(None, "take only so many training samples, evenly spread", 1)
    limit_val: int | None = _key(None, "take only so many validation samples, evenly spread", 1)

    bf16: bool = _key(False, "bfloat16 matrix products; weights stay float32")
    gradient_checkpointing: bool = _key(False, "compute activations twice to keep less of them")
    compile: bool = _key(False, "torch.compile the model")
    attention: str = _key("auto", "as patchrec_fast.attach takes it")
    share: bool | None = _key(
        None, "compute what prompts begin with alike once a micro-batch; by default where the attention is ours"
    )
    workers: int = _key(0, "processes that pack batches ahead", 0, 1024)
    lora: bool = _key(False, "train low-rank adapters, merged into the model at the end")
    lora_rank: int = _key(16, "rank of the adapters; their alpha is twice it", 1, 65_536)

    hidden: int = _key(256, "columns of the tiny model", 2, 65_536)
    layers: int = _key(4, "layers of the tiny model", 1, 1024)
    heads: int = _key(4, "attention heads of the tiny model", 1, 1024)

    log_steps: float = _key(10, "optimizer steps between training losses; a fraction of all below 1", _SOME, _MANY)
    eval_steps: float = _key(0.1, "the same between validation losses", _SOME, _MANY)
    save_steps: float = _key(0.1, "the same between checkpoints", _SOME, _MANY)
    checkpoints: int = _key(2, "newest checkpoints that are kept", 2)
    report_to: str = _key("none", "transformers' names of trackers (tensorboard, wandb), comma-separated")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(field.name, getattr(self, field.name), TYPES[field.name], **field.metadata)
        if (self.batch is None) == (self.rows is None):
            raise ValueError(f"batch, rows: expected one of them, got batch={self.batch}, rows={self.rows}")
        for name, allowed in (("anchor", get_args(Anchor)), ("by", BY)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected {' or '.join(allowed)}, got {getattr(self, name)!r}")
        if self.items_step > 1 and not self.max_items:
            raise ValueError(f"items_step: got {self.items_step}, but max_items is 0, so no item ever leaves")
        if self.warmup >= 1:
            raise ValueError(f"warmup: expected a fraction below 1, got {self.warmup}")
        for name in ("log_steps", "eval_steps", "save_steps"):
            value = getattr(self, name)
            if value > 1 and value % 1:
                raise ValueError(f"{name}: expected a whole number or a fraction below 1, got {value}")

    def override(self, changes: Mapping[str, Any]) -> Recipe:
        """A copy with some keys changed; giving `rows` takes `batch` away, and the other way round."""
        given = dict(changes)
        for one, other in (("rows", "batch"), ("batch", "rows")):
            if given.get(one) is not None:
                given.setdefault(other, None)
        return dataclasses.replace(self, **given)

    def stage(self, name: str) -> Stage:
        """The stage of a name with the recipe's numbers."""
        from .stages import stage

        own = {key: getattr(self, key) for key in ("keep", "group", "p", "patch_step", "anchor")}
        return stage(name, **own)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a TOML file that `load` reads back as this recipe; whole or not at all."""
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        write(Path(path), "".join(f"{name} = {_toml(value)}\n" for name, value in given.items()))


TYPES: dict[str, Any] = get_type_hints(Recipe)
"""The type of each key."""


def load(source: str | os.PathLike[str], stage: str, base: Recipe | None = None) -> Recipe:
    """Reads a recipe for one stage.

    Args:
        source: a name of `BUILT_IN`, or a TOML file.
        stage: whose table in the file wins over the keys outside tables.
        base: what keys are that the file does not have; the defaults where None.

    Raises:
        FileNotFoundError: no such file or built-in recipe.
        ValueError: not TOML; a key or a stage that does not exist, with the nearest that does; a value out of range.
        TypeError: a value of another type. Every message names the file.
    """
    path = FOLDER / f"{source}.toml" if source in BUILT_IN else Path(source)
    if not path.is_file():
        raise FileNotFoundError(
            f"recipe: no file {path}, expected a TOML file or one of {', '.join(BUILT_IN)}{near(str(source), BUILT_IN)}"
        )
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        stages = table.pop("stage", {})
        _known("stage", stages, STAGES)
        for name, changes in [("", table), *stages.items()]:
            _known(f"key of [stage.{name}]" if name else "key", changes, TYPES)
        return (base or Recipe()).override(table).override(stages.get(stage, {}))
    except RecursionError as error:
        raise ValueError(f"{path}: nested too deep") from error
    except (ValueError, TypeError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{path}: {error}") from error


def _known(kind: str, given: Any, expected: Iterable[str]) -> None:
    if not isinstance(given, dict):
        raise TypeError(f"{kind}: expected a table, got {given!r}")
    for name in given:
        if name not in expected:
            nearest = difflib.get_close_matches(name, expected, n=1, cutoff=0)
            raise ValueError(f"unknown {kind} {name!r}, did you mean {nearest[0]!r}?")


def _check(name: str, value: Any, kind: Any, *, least: float | None, most: float | None, help: str) -> None:
    allowed = get_args(kind) or (kind,)
    number = float in allowed and isinstance(value, int)
    if not (isinstance(value, allowed) or number) or (isinstance(value, bool) and bool not in allowed):
        names = " or ".join("none" if one is NoneType else one.__name__ for one in allowed)
        raise TypeError(f"{name}: expected {names}, got {value!r}")
    if value is None or least is None or most is None or least <= value <= most:
        return
    if value > most and most != sys.float_info.max:
        raise ValueError(f"{name}: expected at most {most}, got {value}")
    raise ValueError(f"{name}: expected at least {least}, got {value}")


def _toml(value: str | float) -> str:
    """JSON's strings, numbers and truth values are TOML's, but for one character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
