# SPDX-License-Identifier: Apache-2.0
"""use_embedding, modules as tables, and the patch table."""

import pytest
import torch
from torch import nn

import patchrec_fast as pf
from patchrec_fast.ops.compress.embedding import plain_table
from patchrec_fast.testing import ragged_batch

V, D = 37, 20


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(V, D)

    def get_input_embeddings(self):
        return self.embed_tokens


class Scaled(nn.Embedding):
    """As Gemma's: a subclass whose output is not the table's rows."""

    def forward(self, ids):
        return super().forward(ids) * 4.0


class Adapted(nn.Module):
    """As PEFT's: wraps a table, whose `.weight` alone is not the answer."""

    def __init__(self):
        super().__init__()
        self.base = nn.Embedding(V, D)
        self.delta = nn.Embedding(V, D)

    @property
    def weight(self):
        return self.base.weight

    def forward(self, ids):
        return self.base(ids) + self.delta(ids)


@pytest.fixture(autouse=True)
def nothing_bound():
    from patchrec_fast.ops.compress import embedding

    embedding._bound.clear()
    yield
    embedding._bound.clear()


@pytest.fixture
def batch():
    return ragged_batch(9, V)


def test_nothing_bound_says_so(batch):
    with pytest.raises(RuntimeError, match=r"pass weight=, or bind one with patchrec_fast.use_embedding"):
        pf.compress(batch.ids, batch.offsets)


def test_bound_by_block_and_globally(batch):
    model, module, tensor = Model(), nn.Embedding(V, D), torch.randn(V, D)

    def reads(table):
        return torch.equal(pf.compress(batch.ids, batch.offsets), pf.compress(batch.ids, batch.offsets, table))

    pf.use_embedding(tensor)
    assert reads(tensor)
    with pf.use_embedding(model):
        assert reads(model.embed_tokens.weight)
        with pf.use_embedding(module):
            assert reads(module.weight)
        assert reads(model.embed_tokens.weight)
        model.embed_tokens.weight.data = torch.randn(V, D)
        assert reads(model.embed_tokens.weight)
    assert reads(tensor)
    with pytest.raises(ZeroDivisionError), pf.use_embedding(module):
        raise ZeroDivisionError
    assert reads(tensor)


@pytest.mark.parametrize("wrong", [3, "weight", None, [1.0]])
def test_binding_something_else(wrong):
    with pytest.raises(TypeError, match="embedding must be a"):
        pf.use_embedding(wrong)


def hooked():
    module = nn.Embedding(V, D)
    module.register_forward_hook(lambda module, inputs, output: output * 2)
    return module


def replaced_forward():
    module = nn.Embedding(V, D)
    plain = module.forward
    module.forward = lambda ids: plain(ids) - 1
    return module


MODULES = {
    "plain": lambda: nn.Embedding(V, D),
    "scaled subclass": lambda: Scaled(V, D),
    "adapter": Adapted,
    "hooked": hooked,
    "replaced forward": replaced_forward,
    "padding": lambda: nn.Embedding(V, D, padding_idx=V // 2),
    "max norm": lambda: nn.Embedding(V, D, max_norm=1.0),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_give_what_they_embed(batch, name):
    """Pooling the module's own output is the oracle, for values and for every parameter's gradient."""
    module = MODULES[name]()
    assert (plain_table(module) is not None) == (name == "plain")
    out = pf.compress(batch.ids, batch.offsets, module)
    out.pow(2).sum().backward()
    got = {key: parameter.grad.clone() for key, parameter in module.named_parameters()}
    module.zero_grad()
    places = torch.arange(batch.ids.numel())
    expected = pf.compress(places, batch.offsets, module(batch.ids).double(), impl="reference")
    expected.pow(2).sum().backward()
    assert torch.allclose(out.double(), expected, rtol=1e-5, atol=1e-6)
    for key, parameter in module.named_parameters():
        assert torch.allclose(got[key], parameter.grad, rtol=1e-4, atol=1e-5), key
    if name == "padding":
        assert not got["weight"][V // 2].any()


def test_a_module_that_does_not_embed(batch):
    with pytest.raises(TypeError, match=r"weight: Flatten must map ids \(T,\) to \(T, d\), got"):
        pf.compress(batch.ids, batch.offsets, nn.Flatten(0))
