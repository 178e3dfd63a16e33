# SPDX-License-Identifier: Apache-2.0
"""A training step of attached models on the pretended device: each user alone in float64, and no wait."""

import copy
from itertools import pairwise

import pytest
import torch

import patchrec_fast as pf
from patchrec_fast import data
from patchrec_fast.hf import attach
from tests.hf.conftest import WIDE_FAMILIES
from tests.hf.oracle import alone, assert_same_step, packed, predicting

ROUNDING = 2.0**-8  # of bfloat16
TOLERANCE = 4e-5  # float32 rounds at 6e-8, some hundred times in a row; the CPU's kernels err by 2e-5 (granite)


@pytest.fixture(scope="module")
def prompts(sample):
    """prompts(share): one target of each of two users, short ones, with a plan."""
    sequences = [sample.dataset.items[a:b].tolist() for a, b in pairwise(sample.dataset.offsets[:3])]
    prompt = pf.Prompt(data.sample_tokenizer(sample.dataset.titles.values()), instruction="[HISTORY_SEQUENCE]?")

    def build(share=False):
        packer = pf.Packer(sample.catalogue, prompt, pf.SessionPatches(1), plan=True, share=share)
        return packer.pack_targets(sequences, [2, 4], [2, 4], seed=0)

    return build


class Inputs:
    """A batch whose model inputs were made on the host and moved, as a data loader does."""

    def __init__(self, batch):
        self._inputs = {name: moved(value) for name, value in batch.model_inputs().items()}

    def model_inputs(self):
        return dict(self._inputs)


def moved(value):
    if isinstance(value, list):
        return [each.cuda() for each in value]
    return value.cuda() if isinstance(value, torch.Tensor) else value


def on_the_host(found):
    found.loss, found.gradients = found.loss.cpu(), {name: x.cpu() for name, x in found.gradients.items()}
    found.logits = None if found.logits is None else found.logits.cpu()
    return found


@pytest.mark.parametrize("share", [False, True], ids=["packed", "shared"])
@pytest.mark.parametrize("family", WIDE_FAMILIES)
def test_a_step(pretend, make_model, prompts, family, share):
    """The second step waits for nothing, forward and backward; loss, logits and all gradients are float64's."""
    wide = {"head_dim": 16} if share else {}  # of 16 columns: FlexAttention serves, below that what asks for lengths
    model, batch = make_model(family, **wide), prompts(share)
    exact = alone(model, prompts())
    attach(model)  # tries it, on the CPU
    model, inputs = model.cuda(), Inputs(batch)
    found = packed(model, inputs)
    assert_same_step(on_the_host(found), exact, prompts(), TOLERANCE)
    model.zero_grad()
    pretend.reset()
    model(**inputs.model_inputs()).loss.backward()
    counts = pretend.counts()
    assert pretend.waits() == {}
    assert counts.get("copy to the device", 0) == counts.get("copy to the host", 0) == 0
    assert counts["sum_rows"] >= 1
    assert counts["sum_groups"] >= 1


@pytest.mark.parametrize(("family", "options"), [("llama", {"loss": "chunked"}), ("mistral", {})])
def test_bfloat16_by_the_flash_kernel(pretend, make_model, prompts, family, options):
    """Against float64 no more than 1.5 times the error of bfloat16 users alone, as on the CPU."""
    model, batch = make_model(family).bfloat16(), prompts()
    exact, rounded = alone(model, batch), alone(model, batch, torch.bfloat16)
    attach(model, **options)
    model, inputs = model.cuda(), Inputs(batch)
    found = packed(model, inputs)
    pretend.reset()
    model(**inputs.model_inputs()).loss.backward()
    assert pretend.waits() == {}
    assert pretend.counts()["flash_attention"] == pretend.counts()["flash_attention_backward"] == 2  # layers
    found = on_the_host(found)
    assert abs(found.loss - exact.loss) <= ROUNDING * exact.loss
    if found.logits is not None:
        rows = predicting(batch)
        own = (rounded.logits[rows].double() - exact.logits[rows]).norm()
        assert 0 < (found.logits.double() - exact.logits[rows]).norm() <= 1.5 * own
    for name, gradient in exact.gradients.items():
        own = (rounded.gradients[name].double() - gradient).norm()
        error = (found.gradients[name].double() - gradient).norm()
        assert error <= 1.5 * own + ROUNDING * gradient.norm(), name


def test_a_whole_step_waits_for_nothing(pretend, make_model, prompts):
    """Optimizer, clipping and autocast included, after a first step; the batch comes from pinned memory."""
    model, batch = make_model("llama-tied").train().cuda(), prompts().pin_memory()
    attach(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    host_inputs, losses = batch.model_inputs(), []

    def step():
        inputs = {name: sent(value) for name, value in host_inputs.items()}
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())

    def sent(value):
        if isinstance(value, list):
            return [sent(each) for each in value]
        return value.pin_memory().cuda(non_blocking=True) if isinstance(value, torch.Tensor) else value

    step()
    pretend.reset()
    step()
    assert pretend.waits() == {}
    assert losses[1] < losses[0]


def test_an_unmeant_wait_is_seen(pretend, make_model, prompts):
    """What the tests above would miss would be missed here."""
    model = make_model("llama").cuda()
    attach(model)
    inputs = Inputs(prompts()).model_inputs()
    model.model.layers[1].register_forward_hook(lambda module, args, out: out[0].sum().item() and None)
    pretend.reset()
    model(**inputs)
    assert pretend.waits() == {"item": 1}


def test_inputs_left_on_the_host_are_refused(pretend, make_model, prompts):
    model = make_model("llama").cuda()
    attach(model)
    inputs = Inputs(prompts()).model_inputs()
    inputs["position_ids"] = inputs["position_ids"].cpu()
    with pytest.raises((RuntimeError, ValueError), match=r"same device|on ids' device"):
        model(**inputs)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable.:FutureWarning")
def test_checkpointing(pretend, make_model, prompts):
    model, batch = make_model("llama"), prompts()
    exact = alone(copy.deepcopy(model), batch)
    model = model.train().cuda()
    attach(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same_step(on_the_host(packed(model, Inputs(batch))), exact, batch)
