# SPDX-License-Identifier: Apache-2.0
"""A batch whose prompts share rows does what each prompt alone does."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

import patchrec_fast as pf
from patchrec_fast.hf import attach
from tests.hf.conftest import FAMILIES, WIDE_FAMILIES
from tests.hf.oracle import alone, assert_close, assert_same_step, packed

POLICIES = {
    "text": pf.Text(),
    "items": pf.ItemPatches(keep=2),
    "items, step": pf.ItemPatches(keep=1, step=3),
    "sessions": pf.SessionPatches(group=2),
    "sessions, oldest": pf.SessionPatches(group=2, anchor="oldest"),
    "random": pf.RandomItemPatches(0.5),
    "dropout": pf.Dropout(0.5),
}


@pytest.fixture(scope="module")
def pair(sample):
    """pair(policy, users): several targets of each user, each prompt whole, and as a tree."""

    def build(policy, users=4, first=1, targets=4, **options):
        sequences = [sample.dataset.items[a:b].tolist() for a, b in pairwise(sample.dataset.offsets[: users + 1])]
        begin = [min(first + user, len(items) - 1) for user, items in enumerate(sequences)]
        end = [min(a + targets - 1, len(items) - 1) for a, items in zip(begin, sequences, strict=True)]
        batches = []
        for share in (False, True):
            packer = pf.Packer(sample.catalogue, sample.prompt, policy, share=share, **options)
            batches.append(packer.pack_targets(sequences, begin, end, seed=0))
        return batches

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
    model, (whole, shared) = make_model(family), pair(POLICIES["sessions"], targets=2)
    exact = alone(model, whole)
    attach(model)
    assert_same_step(packed(model, shared), exact, whole)


class Float64(TorchFunctionMode):
    """What transformers computes in float32 whatever the model's dtype (norms, softmax, loss) is in float64 inside."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        wide = {torch.float32: torch.float64}
        args = [wide.get(each, each) if isinstance(each, torch.dtype) else each for each in args]
        kwargs = {
            name: wide.get(each, each) if isinstance(each, torch.dtype) else each
            for name, each in (kwargs or {}).items()
        }
        return (torch.Tensor.double if func is torch.Tensor.float else func)(*args, **kwargs)


@pytest.mark.parametrize("family", WIDE_FAMILIES)
@pytest.mark.parametrize("policy", ["items, step", "sessions, oldest"])
def test_in_float64(make_model, pair, family, policy):
    """From the token ids to every gradient: 1e-10 leaves no room for a row that is read a little otherwise."""
    model, (whole, shared) = make_model(family).double(), pair(POLICIES[policy], targets=3)
    with Float64():
        exact = alone(model, whole)
        attach(model)
        assert_same_step(packed(model, shared), exact, whole, tolerance=1e-10)


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


@pytest.mark.parametrize("policy", ["text", "items, step", "sessions, oldest"])
def test_histories_that_lose_their_oldest_items(make_model, pair, policy):
    model, (whole, shared) = make_model("llama"), pair(POLICIES[policy], targets=8, max_items=4, step=2)
    exact = alone(model, whole)
    attach(model)
    assert_same_step(packed(model, shared), exact, whole)
    assert len(shared.position_ids) < len(whole.position_ids)


def test_one_history_with_several_answers(make_model, sample):
    """Their first tokens are learnt from one row, which is in the segment above."""
    histories, targets = [[1, 2, 3], [1, 2, 3], [1, 2, 3], [4, 5]], [7, 8, 7, 9]
    packers = [pf.Packer(sample.catalogue, sample.prompt, pf.Text(), share=share) for share in (False, True)]
    whole, shared = (packer.pack(histories, targets) for packer in packers)
    model = make_model("llama")
    exact = alone(model, whole)
    attach(model)
    assert_same_step(packed(model, shared), exact, whole)
    assert len(set(shared.supervised_rows.tolist())) == len(shared.supervised_rows) - 2


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_deep_trees(make_model, sample, family):
    """Histories of few items begin alike at every length; a patch without separators is a row."""
    rng = np.random.default_rng(0)
    prompt = copy.copy(sample.prompt)
    prompt.separators = False
    histories = [rng.integers(1, 3, rng.integers(1, 12)) for _ in range(90)]
    targets = rng.integers(1, 40, 90)
    policy = pf.ItemPatches(keep=0)
    whole, shared = (
        pf.Packer(sample.catalogue, prompt, policy, share=share).pack(histories, targets) for share in (False, True)
    )
    segments = shared.segments
    depths, _ = segments.ranges()
    seen = segments.visible[1:].ne(segments.cu_seqlens.diff()[segments.parent[1:].clamp(min=0)])
    assert {1, 2, 3, 4} <= set(depths.tolist())
    assert 1 in segments.cu_seqlens.diff()
    assert seen.unique().tolist() == [False, True]  # of parents, in full and in part
    model = make_model(family)
    exact = alone(model, whole)
    attach(model)
    assert_same_step(packed(model, shared), exact, whole)


def test_prompts_that_are_all_the_same(make_model, sample):
    """Without an answer each has only its last piece, the suffix."""
    whole, shared = (
        pf.Packer(sample.catalogue, sample.prompt, pf.Text(), share=share).pack([[1, 2, 3]] * 4)
        for share in (False, True)
    )
    assert shared.segments.cu_seqlens.diff()[1:].tolist() == [len(sample.prompt.suffix)] * 4
    model = make_model("llama")
    exact = alone(model, whole)
    attach(model)
    logits = model(**shared.model_inputs()).logits[0].detach()
    for each in shared.prompts(logits):
        assert_close(each, exact.logits[: len(each)])


def test_a_model_that_is_not_attached(make_model, pair):
    _, shared = pair(POLICIES["text"])
    with pytest.raises((TypeError, ValueError), match=r"ids|input"):
        make_model("llama")(**shared.model_inputs())


def test_losses_of_others_are_refused(make_model, sample):
    """Where two answers begin behind one row: labels that are shifted would teach the first answer's end the second."""
    packer, model = pf.Packer(sample.catalogue, sample.prompt, pf.Text(), share=True), make_model("llama")
    attach(model)
    inputs = packer.pack([[1, 2], [1, 2]], [3, 4]).model_inputs()
    with pytest.raises(ValueError, match=r"shift_labels: the loss .* share=False"):
        model(**inputs, shift_labels=inputs["labels"])


def test_dropout_of_attention_is_refused(make_model, pair):
    model, (_, shared) = make_model("llama", attention_dropout=0.1), pair(POLICIES["text"])
    attach(model)
    model.train()
    with pytest.raises(RuntimeError, match=r"attention_dropout to 0, or pack with share=False"):
        model(shared)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_that_does_not_compute_it_is_refused(make_model, pair, attention):
    model, (_, shared) = make_model("llama"), pair(POLICIES["items"])
    attach(model, attention=attention)
    with pytest.raises(ValueError, match=rf"share rows.*'{attention}'.*share=False"):
        model(shared)
