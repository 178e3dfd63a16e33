# SPDX-License-Identifier: Apache-2.0
"""The protocol of the paper's released code: k groups of one beam, the prompt repeated for each, no cache.

transformers 5 has no group beam search, so this is the loop of version 4.46 (`_group_beam_search` with
`diversity_penalty=0.8, early_stopping=True, use_cache=False`): each step runs the whole text of every beam, finished
or not. Kinder than the original in three ways: the head sees last rows alone, allowed tokens are looked up, not
scanned for, and of the vocabulary's probabilities those of title tokens alone are worked on, in host memory.
"""

from typing import Any

import torch
from torch import Tensor

from patchrec_fast import Packer

from .decode_generate import Answers, continuations, prompts, titles

PENALTY = 0.8


@torch.no_grad()
def decode(model: Any, packer: Packer, histories: list[list[int]], k: int) -> Answers:
    """What `method="diverse"` gives."""
    end, allowed, names = packer.prompt.end_of_turn, continuations(packer), titles(packer)
    rows, mask = (each.repeat_interleave(k, 0) for each in prompts(model, packer, histories))
    tokens = torch.tensor(sorted({token for title in names for token in title}))
    column = {token: place for place, token in enumerate(tokens.tolist())}
    columns = {text: [column[token] for token in following] for text, following in allowed.items()}
    texts: list[tuple[int, ...]] = [()] * len(rows)  # users one after another, k groups each
    sums, final = torch.zeros(len(rows)), torch.full((len(rows),), -torch.inf)
    running = torch.ones(len(rows), dtype=torch.bool)
    while running.any():
        known = _last_logits(model, rows, mask).float().log_softmax(-1)
        scores = known[:, tokens.to(known.device)].cpu()  # (B * k, U)
        chosen = torch.full((len(rows),), end)
        for user in range(len(histories)):
            taken = torch.zeros(len(tokens))
            for group in range(user * k, user * k + k):
                if not running[group]:
                    continue
                lowered = scores[group] - PENALTY * taken + sums[group]
                may = torch.full_like(lowered, -torch.inf)
                may[columns[texts[group]]] = 0
                top, places = (lowered + may).topk(2)
                ended = int(tokens[places[0]]) == end
                if ended:
                    final[group] = top[0] / (len(texts[group]) + 1)
                    running[group] = False
                if top[int(ended)] > -torch.inf:
                    taken[places[int(ended)]] += 1
                    chosen[group] = tokens[places[int(ended)]]
                sums[group] = top[0]
                texts[group] += (int(tokens[places[0]]),)
        chosen = chosen.to(rows.device)
        rows = torch.cat([rows, model.get_input_embeddings()(chosen).unsqueeze(1)], 1)
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
    return _by_score([names[text] for text in texts], final, k)


def _last_logits(model: Any, rows: Tensor, mask: Tensor) -> Tensor:
    position = (mask.cumsum(1) - 1).clamp(min=0)
    out = model(inputs_embeds=rows, attention_mask=mask, position_ids=position, use_cache=False, logits_to_keep=1)
    return out.logits[:, 0]


def _by_score(items: list[int], final: Tensor, k: int) -> Answers:
    scores, order = final.view(-1, k).sort(dim=1, descending=True, stable=True)
    found = torch.tensor(items).view(-1, k).gather(1, order)
    return found.tolist(), scores
