# SPDX-License-Identifier: Apache-2.0
"""A batch that shares the rows before the history does what each user alone does, prefix and all."""

from itertools import pairwise

import pytest
import torch

import patchrec_fast as pf
from patchrec_fast.hf import attach
from tests.hf.conftest import FAMILIES, WIDE_FAMILIES
from tests.hf.oracle import alone, assert_same_step, packed

POLICIES = {"text": pf.Text(), "items": pf.ItemPatches(keep=2), "sessions": pf.SessionPatches(group=2)}


@pytest.fixture(scope="module")
def pair(sample):
    """pair(policy, users): the same users with the prefix each, and sharing it."""

    def build(policy, users=5, first=1, **options):
        offsets, histories, targets = sample.dataset.offsets, [], []
        for user in range(users):
            items = sample.dataset.items[offsets[user] : offsets[user + 1]].tolist()
            length = min(3 * user + first, len(items) - 1)
            histories.append(items[:length])
            targets.append(items[length])
        packers = [pf.Packer(sample.catalogue, sample.prompt, policy, share_prefix=share) for share in (False, True)]
        return [packer.pack(histories, targets, seed=0, **options) for packer in packers]

    return build


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_equals_each_user_alone(make_model, pair, family, policy):
    model, (whole, shared) = make_model(family), pair(POLICIES[policy])
    exact = alone(model, whole)
    attach(model)
    assert_same_step(packed(model, shared), exact, whole)


@pytest.mark.parametrize("family", sorted(set(WIDE_FAMILIES) - set(FAMILIES)))
def test_in_other_families(make_model, pair, family):
    model, (whole, shared) = make_model(family), pair(POLICIES["sessions"])
    exact = alone(model, whole)
    attach(model)
    assert_same_step(packed(model, shared), exact, whole)


@pytest.mark.parametrize("options", [{"attention": "masked"}, {"attention": "varlen"}, {"loss": "chunked"}], ids=str)
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_kernels_and_losses_by_name(make_model, pair, family, options):
    model, (whole, shared) = make_model(family), pair(POLICIES["items"])
    exact = alone(model, whole)
    attach(model, **options)
    assert_same_step(packed(model, shared), exact, whole)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable.:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
def test_with_gradient_checkpointing(make_model, pair, reentrant):
    model, (whole, shared) = make_model("qwen2"), pair(POLICIES["sessions"])
    exact = alone(model, whole)
    attach(model)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert_same_step(packed(model, shared), exact, whole)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_compiled_without_graph_breaks(make_model, pair, family):
    """Other lengths and other numbers of users do not compile it again."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    model = make_model(family)
    pairs = [pair(POLICIES["sessions"], users=4), pair(POLICIES["sessions"], first=2), pair(POLICIES["items"], users=6)]
    exact = [alone(model, whole) for whole, _ in pairs]
    attach(model)
    model.train()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    counts = []
    for (whole, shared), expected in zip(pairs, exact, strict=True):
        assert_same_step(packed(model, shared, compiled), expected, whole)
        counts.append(counter.frame_count)
    assert counts[0] == counts[-1]


def test_bfloat16_rounds_no_more_than_unshared(make_model, pair):
    model, (whole, shared) = make_model("llama").bfloat16(), pair(POLICIES["items"])
    exact = alone(model, whole)
    attach(model)
    one, other = packed(model, whole), packed(model, shared)
    for name, gradient in exact.gradients.items():
        own = (one.gradients[name].double() - gradient).norm()
        assert (other.gradients[name].double() - gradient).norm() <= 1.5 * own + 2.0**-8 * gradient.norm(), name


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("users", [1, 2, 6])
def test_the_batch_has_the_prefix_once(sample, pair, policy, users):
    whole, shared = pair(POLICIES[policy], users=users)
    prefix = len(sample.prompt.prefix)
    assert len(whole.position_ids) - len(shared.position_ids) == prefix * (users - 1)
    kept = [
        row
        for user, (a, b) in enumerate(pairwise(whole.cu_seqlens.tolist()))
        for row in range(a + (prefix if user else 0), b)
    ]
    assert torch.equal(shared.position_ids, whole.position_ids[kept])
    assert torch.equal(shared.labels, whole.labels[kept])
    assert shared.user_offsets.diff()[0] == whole.cu_seqlens.diff()[0]
    inputs = shared.model_inputs()
    if users == 1:
        assert "key_rows" not in inputs
        return
    assert torch.equal(inputs["cu_seq_lens_k"], whole.cu_seqlens)  # every user sees as many keys as without sharing
    assert inputs["max_length_k"] >= whole.max_seqlen
    seen, own, copies = inputs["key_rows"]
    row_of = {row: number for number, row in enumerate(kept)}
    expected = []
    for a, b in pairwise(whole.cu_seqlens.tolist()):
        expected += [row_of.get(row, row - a) for row in range(a, b)]
    assert seen.tolist() == expected
    assert torch.equal(seen[own], torch.arange(len(kept)))
    assert torch.equal(seen[copies], torch.arange(prefix).expand(users - 1, -1))
    assert sorted([*own.tolist(), *copies.flatten().tolist()]) == list(range(len(seen)))


def test_the_inputs_are_made_without_looking_at_values(sample):
    """On the meta device there are none; a GPU would be waited for."""
    packer = pf.Packer(sample.catalogue, sample.prompt, pf.Text(), share_prefix=True)
    batch = packer.pack([sample.dataset.items[:3], sample.dataset.items[3:5]])
    inputs = batch.to("meta").model_inputs()
    assert [part.shape for part in inputs["key_rows"]] == [part.shape for part in batch.model_inputs()["key_rows"]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_that_does_not_compute_it_is_refused(make_model, pair, attention):
    model, (_, shared) = make_model("llama"), pair(POLICIES["items"])
    attach(model, attention=attention)
    with pytest.raises(ValueError, match=rf"4 users .* share the first one's rows .*'{attention}'.*share_prefix"):
        model(shared)
