# SPDX-License-Identifier: Apache-2.0
"""What the decoders are compared with: transformers' own beam search, one user at a time, and plain loops.

Nothing here knows of tries, caches or packed batches: titles are tuples of tokens, prompts are rows averaged by hand.
"""

import torch

from tests.hf.oracle import rows_by_hand


def titles(packer):
    """(tokens and end) -> the items with that title, as the catalogue has them."""
    catalogue, found = packer.catalogue, {}
    for at, item in enumerate(catalogue.item_ids.tolist()):
        tokens = catalogue.token_ids[catalogue.offsets[at] : catalogue.offsets[at + 1]].tolist()
        found.setdefault((*tokens, packer.prompt.end_of_turn), []).append(item)
    return found


def continuations(packer):
    """Beginning of a title -> the tokens that may follow, rising."""
    allowed = {}
    for title in titles(packer):
        for place, token in enumerate(title):
            allowed.setdefault(title[:place], set()).add(token)
    return {beginning: sorted(tokens) for beginning, tokens in allowed.items()}


def prompt_rows(model, packer, history):
    """(1, R, d): one user's input embeddings."""
    return rows_by_hand(model, packer.pack([history], seed=0))[None].detach()


@torch.no_grad()
def generate(model, packer, history, beams, **options):
    """Items and scores of transformers' beam search."""
    end, allowed, names = packer.prompt.end_of_turn, continuations(packer), titles(packer)
    rows = prompt_rows(model, packer, history)
    out = model.generate(
        inputs_embeds=rows,
        attention_mask=torch.ones(rows.shape[:2], dtype=torch.int64),
        num_beams=beams,
        num_return_sequences=beams,
        do_sample=False,
        max_new_tokens=max(map(len, names)),
        prefix_allowed_tokens_fn=lambda _, ids: allowed.get(tuple(ids.tolist()), [end]),
        eos_token_id=end,
        pad_token_id=end,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    found = [tuple(ids[: ids.index(end) + 1]) for ids in out.sequences.tolist()]
    return [names[title][0] for title in found], out.sequences_scores


class Alone:
    """One user's log-probabilities after any tokens, each asked by a call of an untouched model on the whole text."""

    def __init__(self, model, packer, history):
        self.model, self.rows, self.known = model, prompt_rows(model, packer, history), {}

    @torch.no_grad()
    def __call__(self, tokens):
        """(V,) after the prompt and these tokens."""
        if tokens not in self.known:
            rows = self.rows
            if tokens:
                rows = torch.cat([rows, self.model.get_input_embeddings()(torch.tensor([tokens]))], 1)
            logits = self.model(inputs_embeds=rows, use_cache=False).logits[0, -1]
            self.known[tokens] = logits.float().log_softmax(0)
        return self.known[tokens]

    def title(self, tokens):
        """The log-probability of a title and its end."""
        return sum(float(self(tokens[:place])[token]) for place, token in enumerate(tokens))


def group_beams(after, allowed, end, groups, penalty):
    """transformers 4's group beam search with groups of one beam, early stopping and length penalty 1.

    After `GenerationMixin._group_beam_search`, `HammingDiversityLogitsProcessor`, `BeamSearchScorer.process` and
    `BeamHypotheses` of transformers 4.46, one line for one. Two best continuations are looked at for each beam.

    Args:
        after: tokens -> (V,) log-probabilities.
        allowed: beginning -> tokens.

    Returns:
        (score, tokens) of each group's hypothesis, best first.
    """
    texts, sums, done, hypotheses = [()] * groups, [0.0] * groups, [False] * groups, []
    while not all(done):
        current = []
        for group in range(groups):
            if done[group]:
                continue
            scores = after(texts[group]).clone()
            for token in current:
                scores[token] -= penalty
            scores = scores + sums[group]
            choices = sorted(allowed[texts[group]], key=lambda token: -float(scores[token]))[:2]
            for rank, token in enumerate(choices):
                text = (*texts[group], token)
                if token == end:
                    if rank == 0:
                        hypotheses.append((float(scores[token]) / len(text), text))
                        done[group] = True
                    continue
                texts[group], sums[group] = text, float(scores[token])
                current.append(token)
                break
    return sorted(hypotheses, key=lambda pair: -pair[0])  # stable
