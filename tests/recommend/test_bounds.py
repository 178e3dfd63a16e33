# SPDX-License-Identifier: Apache-2.0
"""The head in parts against the head whole."""

import pytest
import torch

import patchrec_fast as pf
from patchrec_fast.recommend.lm_head import LMHead


def parts(model, tokens):
    """Hidden states (50, d), all their logits by hand, and which of them are in the subset."""
    torch.manual_seed(1)
    hidden = torch.randn(50, 32)
    logits = (hidden @ model.get_output_embeddings().weight.T).detach()
    inside = torch.zeros(logits.shape[1], dtype=torch.bool)
    inside[tokens] = True
    return hidden, logits, inside


@torch.no_grad()
@pytest.mark.parametrize("spread", [0.01, 0.2])
@pytest.mark.parametrize("attached", [False, True])
def test_the_others_weigh_at_least_this(make_model, spread, attached):
    """Jensen's bound, tight where logits hardly differ: half their variance, 32 * 0.01 ** 2 / 2, is under 0.01."""
    model, tokens = make_model(vocab_size=10_000, initializer_range=spread), torch.arange(0, 10_000, 7)
    if attached:
        pf.attach(model)
    head = LMHead(model)
    hidden, logits, inside = parts(model, tokens)
    bound = head.subset(tokens).rest(hidden)
    true = logits[:, ~inside].logsumexp(1)
    assert (bound <= true + 1e-5).all()
    if spread == 0.01:
        assert (bound >= true - 0.01).all()


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_log_sum_exp_and_subset(make_model, family):
    """Over more than two blocks of the vocabulary; Gemma 2 caps its logits, and then there is no bound."""
    model, tokens = make_model(family, vocab_size=10_000), torch.tensor([9_999, 5, 0])
    head = LMHead(model)
    hidden, logits, _ = parts(model, tokens)
    cap = getattr(model.config, "final_logit_softcapping", None)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    torch.testing.assert_close(head.log_sum_exp(hidden), logits.logsumexp(1))
    torch.testing.assert_close(torch.cat(list(head.subset(tokens).logits(hidden))), logits[:, tokens])
    assert (head.subset(tokens).rest(hidden) is None) == (cap is not None)
