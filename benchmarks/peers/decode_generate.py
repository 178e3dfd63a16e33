# SPDX-License-Identifier: Apache-2.0
"""transformers' own beam search: `generate` with a cache and `prefix_allowed_tokens_fn`.

The kindest way there is: prompts padded on the left in one batch, the allowed tokens in a dictionary by text.
"""

from typing import Any

import torch
from torch import Tensor

from patchrec_fast import Packer, compress

Answers = tuple[list[list[int]], Tensor]
"""Item ids (B, k) and their scores (B, k)."""


def titles(packer: Packer) -> dict[tuple[int, ...], int]:
    """A title's tokens and its end -> the first item of that title."""
    catalogue, end = packer.catalogue, packer.prompt.end_of_turn
    bounds, tokens = catalogue.offsets.tolist(), catalogue.token_ids.tolist()
    found: dict[tuple[int, ...], int] = {}
    for at, item in enumerate(catalogue.item_ids.tolist()):
        found.setdefault((*tokens[bounds[at] : bounds[at + 1]], end), item)
    return found


def continuations(packer: Packer) -> dict[tuple[int, ...], list[int]]:
    """The beginning of a title -> the tokens that may follow."""
    allowed: dict[tuple[int, ...], set[int]] = {}
    for title in titles(packer):
        for place, token in enumerate(title):
            allowed.setdefault(title[:place], set()).add(token)
    return {beginning: list(tokens) for beginning, tokens in allowed.items()}


def prompts(model: Any, packer: Packer, histories: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Input embeddings (B, S, d), padded on the left, and the mask (B, S)."""
    weight = model.get_input_embeddings().weight
    batch = packer.pack(histories).to(weight.device)
    rows = compress(batch.ids, batch.offsets, weight)
    parts = [part.flip(0) for part in rows.split(batch.cu_seqlens.diff().tolist())]
    padded = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True).flip(1)
    lengths = batch.cu_seqlens.diff().unsqueeze(1)
    column = torch.arange(padded.shape[1], device=weight.device)
    return padded, (column >= padded.shape[1] - lengths).long()


@torch.no_grad()
def decode(model: Any, packer: Packer, histories: list[list[int]], k: int) -> Answers:
    """Length penalty 0 and "never" stopping early: what `method="beam"` gives."""
    end, allowed, names = packer.prompt.end_of_turn, continuations(packer), titles(packer)
    rows, mask = prompts(model, packer, histories)
    out = model.generate(
        inputs_embeds=rows,
        attention_mask=mask,
        num_beams=k,
        num_return_sequences=k,
        do_sample=False,
        max_new_tokens=max(map(len, names)),
        length_penalty=0.0,
        early_stopping="never",
        prefix_allowed_tokens_fn=lambda _, ids: allowed.get(tuple(ids.tolist()), [end]),
        eos_token_id=end,
        pad_token_id=end,
        return_dict_in_generate=True,
        output_scores=True,
    )
    items = [names[tuple(ids[: ids.index(end) + 1])] for ids in out.sequences.tolist()]
    found = [items[first : first + k] for first in range(0, len(items), k)]
    return found, out.sequences_scores.cpu().view(len(histories), k)
