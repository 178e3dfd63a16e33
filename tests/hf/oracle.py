# SPDX-License-Identifier: Apache-2.0
"""The oracle: each user alone.

The rows are averaged by hand, in float64; the model is an untouched copy with transformers' eager attention; there
is one sequence in the batch, no mask trick and no cache.
"""

import copy
from itertools import pairwise
from types import SimpleNamespace

import torch
from torch.nn import functional as F


def rows_by_hand(model, batch):
    """(R, d): each row the mean over its items of the mean over the item's tokens, of what the embedding gives."""
    tokens = model.get_input_embeddings()(batch.ids.long())  # (T, d)
    token_at, item_at = (offsets.tolist() for offsets in batch.offsets)
    items = [tokens[a:b].mean(0) for a, b in pairwise(token_at)]
    return torch.stack([torch.stack(items[a:b]).mean(0) for a, b in pairwise(item_at)])


def alone(model, batch, dtype=torch.float64):
    """loss, logits (R, V) and each trained parameter's gradient: every user by themselves, in an untouched copy."""
    model = copy.deepcopy(model).to(dtype)
    model.set_attn_implementation("eager")
    rows = rows_by_hand(model, batch)
    bounds = batch.cu_seqlens.tolist()
    logits, losses = [], []
    for a, b in pairwise(bounds):
        made = model(inputs_embeds=rows[None, a:b], use_cache=False).logits[0]  # (n, V)
        logits.append(made)
        if batch.labels is not None:
            wide = made if dtype == torch.float64 else made.float()
            losses.append(F.cross_entropy(wide[:-1], batch.labels[a + 1 : b], reduction="none", ignore_index=-100))
    logits = torch.cat(logits)
    if batch.labels is None:
        return SimpleNamespace(logits=logits.detach())
    loss = torch.cat(losses).sum() / (batch.labels != -100).sum()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    return SimpleNamespace(loss=loss.detach(), logits=logits.detach(), gradients=gradients)


def packed(model, batch, call=None):
    """The same of a packed call of an attached model (or of `call`, compiled from it); logits (N, V) of the
    supervised rows only, None where the model makes none."""
    model.zero_grad()
    out = (model if call is None else call)(**batch.model_inputs())
    out.loss.backward()
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    gradients = {name: parameter.grad.clone() for name, parameter in trained}
    logits = None if out.logits is None else out.logits[0].detach()
    return SimpleNamespace(loss=out.loss.detach(), logits=logits, gradients=gradients)


def predicting(batch):
    """The rows whose successor is supervised."""
    return (batch.labels[1:] != -100).nonzero().squeeze(1)


def assert_close(actual, exact, tolerance=1e-5):
    """Within tolerance of exact's largest magnitude: float32 rounds at 6e-8 of it, a few hundred times."""
    error = (actual.double() - exact.double()).abs().max()
    assert error <= tolerance * max(1.0, exact.abs().max()), f"off by {error:.3g} of {exact.abs().max():.3g}"


def assert_same_step(actual, exact, batch, tolerance=1e-5):
    """Loss, supervised logits where there are any, and every parameter's gradient."""
    assert_close(actual.loss, exact.loss, tolerance)
    if actual.logits is not None:
        assert_close(actual.logits, exact.logits[predicting(batch)], tolerance)
    assert actual.gradients.keys() == exact.gradients.keys()
    largest = max(gradient.abs().max() for gradient in exact.gradients.values())
    for name, gradient in exact.gradients.items():
        error = (actual.gradients[name].double() - gradient.double()).abs().max()
        assert error <= tolerance * largest, f"{name}: off by {error:.3g} of {largest:.3g}"
