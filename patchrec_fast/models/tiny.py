# SPDX-License-Identifier: Apache-2.0
"""A language model of a few million parameters, made from scratch for one catalogue.

Most of a small model's parameters would be the embeddings of tokens that no title has, so the vocabulary is cut to
the tokens of the titles and of the prompt. What comes out is a plain Hugging Face model and tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING

import numpy as np

from .._check import check_count
from ..layout import Catalogue, Prompt
from .vocabulary import cut

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast


def tiny_model(
    titles: Mapping[int, str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    instruction: str,
    system: str | None = None,
    hidden: int = 256,
    layers: int = 4,
    heads: int = 4,
    seed: int = 0,
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A Llama with random weights and tied embeddings, and its tokenizer.

    Args:
        titles: item id -> title.
        tokenizer: a byte-level BPE tokenizer with a chat template; left as it is.
        instruction, system: as `Prompt` takes them; their tokens are kept too.
        hidden: columns of a row, a multiple of 2 * heads.
        layers, heads: at least 1 each.
        seed: of the weights.

    Returns:
        The model, in float32 on the CPU (4 million parameters for MovieLens titles), and the cut tokenizer, which has
        the marks of `Prompt` already.

    Raises:
        TypeError, ValueError: sizes that do not fit; a tokenizer that cannot be cut; what `Prompt` and `Catalogue`
            raise.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    for name, value in (("hidden", hidden), ("layers", layers), ("heads", heads)):
        check_count(name, value, minimum=1)
    if hidden % (2 * heads):
        raise ValueError(f"hidden: expected a multiple of 2 * heads = {2 * heads}, got {hidden}")
    marked = deepcopy(tokenizer)
    full = Prompt(marked, system=system, instruction=instruction)
    used = np.concatenate(
        [
            Catalogue.from_titles(titles, marked).token_ids,
            full.prefix,
            full.suffix,
            [full.separator, full.end_of_turn],
        ]
    )
    smaller = cut(marked, used)
    prompt = Prompt(smaller, system=system, instruction=instruction)
    config = LlamaConfig(
        vocab_size=prompt.num_embeddings,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=8192,  # rows of the longest MovieLens history as text
        tie_word_embeddings=True,
        bos_token_id=smaller.bos_token_id,
        eos_token_id=prompt.end_of_turn,
        pad_token_id=None,  # a padding row would make the embedding more than a table (see `attach`)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config), smaller
