# SPDX-License-Identifier: Apache-2.0
"""A tokenizer cut to fewer tokens, which still cuts text at the same places.

Byte-level BPE joins symbols, the best-ranked pair first. A pair that is never joined in a text cannot matter to it:
with only the merges that a text needs, in their old order, each step finds the same best pair. And the merges inside
one token of the result are those of that token alone, because no merge crosses its ends. So the merges of each
kept token, taken by itself, are all that is needed. The 256 byte symbols stay, so that any text can be encoded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

_PROCESSORS = {"ByteLevel", "Sequence", "TemplateProcessing"}


def cut(tokenizer: PreTrainedTokenizerBase, used: Iterable[int]) -> PreTrainedTokenizerFast:
    """A copy of a tokenizer that knows fewer tokens.

    Text whose tokens are all in `used` is cut into the same token strings as before; other text into smaller pieces.
    Ids are new, without gaps, in the old order. Added tokens that are neither used nor named (as the begin of a text,
    or padding) are ordinary text afterwards.

    Args:
        tokenizer: a Hugging Face fast tokenizer of the byte-level BPE kind (Llama 3, Qwen, GPT-2); left as it is.
        used: ids to keep.

    Raises:
        ValueError: another kind of tokenizer.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    content = _content(tokenizer)
    names = tokenizer.convert_ids_to_tokens(sorted({int(token) for token in used} | set(tokenizer.all_special_ids)))
    model = content["model"]
    ranks = {tuple(pair): rank for rank, pair in enumerate(_pairs(model["merges"]))}
    added = {token["content"] for token in content["added_tokens"]}
    kept = set(_alphabet()) | set(names)
    for name in names:
        if name not in added:
            kept |= _pieces(name, ranks)
    model["vocab"] = _renumbered({name: at for name, at in model["vocab"].items() if name in kept})
    model["merges"] = [pair for pair in ranks if kept.issuperset(pair) and "".join(pair) in model["vocab"]]
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in kept]
    ids = dict(model["vocab"])
    for token in sorted(content["added_tokens"], key=lambda token: token["id"]):
        token["id"] = ids.setdefault(token["content"], len(ids))
    _point_to(ids, content["post_processor"])
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        chat_template=tokenizer.chat_template,
        clean_up_tokenization_spaces=False,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        **tokenizer.special_tokens_map,
    )


def _content(tokenizer: Any) -> dict[str, Any]:
    """The tokenizer as `tokenizer.json` has it, checked."""
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"tokenizer: {type(tokenizer).__name__} has no tokenizer.json, expected a fast tokenizer")
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model = content["model"]
    byte_level = model["type"] == "BPE" and not model.get("byte_fallback") and _alphabet() <= model["vocab"].keys()
    processors = set(_types(content["post_processor"]))
    if not byte_level or not processors <= _PROCESSORS:
        kind = ", ".join([model["type"], *sorted(processors - _PROCESSORS)])
        raise ValueError(f"tokenizer: only byte-level BPE (Llama 3, Qwen, GPT-2) can be cut, got {kind}")
    return content


def _types(processor: dict[str, Any] | None) -> list[str]:
    if processor is None:
        return []
    inner = [name for part in processor.get("processors", ()) for name in _types(part)]
    return [processor["type"], *inner]


def _alphabet() -> set[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return set(ByteLevel.alphabet())


def _pairs(merges: list[Any]) -> list[list[str]]:
    """Older files write "a b", newer ones ["a", "b"]."""
    return [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]


def _pieces(token: str, ranks: dict[tuple[str, ...], int]) -> set[str]:
    """What byte-level BPE makes on the way to `token`, the byte symbols aside."""
    symbols, made = list(token), set()
    while len(symbols) > 1:
        best = min(
            range(len(symbols) - 1), key=lambda at: ranks.get((symbols[at], symbols[at + 1]), len(ranks))
        )  # the leftmost of equal ones
        if (symbols[best], symbols[best + 1]) not in ranks:
            break  # a token that only `ignore_merges` reaches
        symbols[best : best + 2] = [symbols[best] + symbols[best + 1]]
        made.add(symbols[best])
    return made


def _renumbered(vocabulary: dict[str, int]) -> dict[str, int]:
    return {name: new for new, name in enumerate(sorted(vocabulary, key=vocabulary.__getitem__))}


def _point_to(ids: dict[str, int], processor: dict[str, Any] | None) -> None:
    """Put the new ids into the templates that add special tokens to a text."""
    if processor is None:
        return
    for part in processor.get("processors", ()):
        _point_to(ids, part)
    if processor["type"] == "TemplateProcessing":
        for entry in processor["special_tokens"].values():
            entry["ids"] = [ids[name] for name in entry["tokens"]]
