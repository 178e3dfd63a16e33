# SPDX-License-Identifier: Apache-2.0
"""How many positions a model has: an error where they are a table, a warning where they go on untrained."""

import re
import warnings
from typing import Any

from torch import nn

from .modules import inner_of

_warned: set[tuple[type, int]] = set()


def check_length(model: Any, rows: int) -> None:
    """That a prompt of so many rows, a number of the host, has positions.

    Raises:
        ValueError: the model has a table of positions, and it is shorter.
    """
    inner = inner_of(model)
    limit = _limit(inner.config.get_text_config())
    if limit is None or rows <= limit:
        return
    name, advice = type(inner).__name__, "keep fewer items (Packer's max_items), or compress more of them"
    if _has_table(inner):
        raise ValueError(f"a prompt has {rows} rows, and {name} has {limit} positions; {advice}")
    if (type(inner), limit) not in _warned:
        _warned.add((type(inner), limit))
        warnings.warn(
            f"a prompt has {rows} rows, and {name} was made for {limit} positions (max_position_embeddings): what it "
            f"says beyond is not to be relied on; {advice}",
            stacklevel=2,
        )


def _limit(config: Any) -> int | None:
    """`max_position_embeddings`, stretched where rotary embeddings are scaled beyond it."""
    limit = getattr(config, "max_position_embeddings", None)
    if type(limit) is not int or limit < 1:
        return None
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for each in rope.values() if any(isinstance(value, dict) for value in rope.values()) else [rope]:
        if not isinstance(each, dict):
            continue
        kind, factor = each.get("rope_type", each.get("type")), each.get("factor") or 1.0
        if kind == "dynamic":
            limit = max(limit, int(limit * factor))
        elif kind in ("yarn", "longrope", "llama3") and each.get("original_max_position_embeddings"):
            limit = max(limit, int(each["original_max_position_embeddings"] * factor))
    return limit


def _has_table(inner: nn.Module) -> bool:
    """Whether positions are looked up: an embedding named for them."""
    return any(
        isinstance(part, nn.Embedding) and re.search(r"pos|wpe", name.rpartition(".")[2])
        for name, part in inner.named_modules()
    )
