# SPDX-License-Identifier: Apache-2.0
"""Packed attention against float64 by brute force, and which kernel serves what."""

from itertools import pairwise

import pytest
import torch

from patchrec_fast.hf import attention
from patchrec_fast.hf.attention import choose, packed_attention, why_not
from patchrec_fast.ops.attention import flex
from patchrec_fast.ops.attention.varlen import varlen_attention
from patchrec_fast.testing import UNIT_ROUNDOFF

# The CPU flash kernel tiles queries by 32 and more and keys by 512: more than two tiles of each, and ragged.
LENGTHS = {"short": [1, 0, 33, 1, 7], "long": [5, 1100, 0, 1, 70]}
HEADS = {"grouped": (6, 2), "single": (3, 3)}


def inputs(lengths, heads, width=16, dtype=torch.float32, seed=0):
    """query, key, value (R, H, D), not contiguous as in a model, and cu_seqlens."""
    generator = torch.Generator().manual_seed(seed)
    rows = sum(lengths)
    query, key, value = (
        torch.randn(count, rows, width, generator=generator).to(dtype).transpose(0, 1)
        for count in (heads[0], heads[1], heads[1])
    )
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    return query, key, value, bounds


def brute(query, key, value, bounds, scale, window=None, softcap=None, bounds_k=None):
    """(R, Hq, D) in the inputs' dtype, a row, a head and a sequence at a time; queries are their keys' last rows."""
    groups = query.shape[1] // key.shape[1]
    bounds_k = bounds if bounds_k is None else bounds_k
    out = []
    for (start, end), (start_k, end_k) in zip(pairwise(bounds.tolist()), pairwise(bounds_k.tolist()), strict=True):
        for row in range(start, end):
            place = end_k - (end - row)
            first = start_k if window is None else max(start_k, place - window + 1)
            seen = slice(first, place + 1)
            k, v = (x[seen].repeat_interleave(groups, 1) for x in (key, value))  # (n, Hq, D)
            logits = (k * query[row]).sum(-1) * scale  # (n, Hq)
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            out.append((logits.softmax(0).unsqueeze(-1) * v).sum(0))
    return torch.stack(out)


def budget(dtype):
    """For O(1) values: about 30 roundings, of logits of up to 5 (5u each), weights, sums in float32, one output."""
    return 32 * UNIT_ROUNDOFF[dtype]


def gradient_budget(exact, grad, value, scale, dtype):
    """The same, relative to the largest gradient; and the logits' gradient is a difference of two dot products of D
    terms, each off by sqrt(D) u of its terms' sum (random signs), then multiplied by keys or queries (below 4)."""
    groups = grad.shape[1] // value.shape[1]
    terms = grad.abs().amax(0) * value.abs().amax(0).repeat_interleave(groups, 0)  # (Hq, D)
    cancelled = 2 * grad.shape[-1] ** 0.5 * terms.sum(-1).max() * scale * 4
    return UNIT_ROUNDOFF[dtype] * (32 * exact.abs().max() + cancelled)


def check_with_gradients(made, expected, leaves, exact):
    """Outputs, and gradients of query, key and value, against float64."""
    assert (made - expected).abs().max() <= budget(torch.float32)
    grad = torch.randn(made.shape, generator=torch.Generator().manual_seed(1))
    made.backward(grad)
    expected.backward(grad.double())
    for leaf, reference in zip(leaves, exact, strict=True):
        allowed = gradient_budget(reference.grad, grad, leaves[2].detach(), 0.3, torch.float32)
        assert (leaf.grad - reference.grad).abs().max() <= allowed


@pytest.mark.parametrize("window", [None, 1, 9, 600])
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("kernel", ["varlen", "masked"])
@pytest.mark.usefixtures("poisoned")
def test_forward_and_gradient(kernel, lengths, heads, window):
    *qkv, bounds = inputs(lengths, heads)
    exact = [x.double().clone().requires_grad_() for x in qkv]
    expected = brute(*exact, bounds, 0.3, window)
    leaves = [x.clone().requires_grad_() for x in qkv]
    made = packed_attention(*leaves, bounds, max(lengths), scale=0.3, window=window, kernel=kernel)
    check_with_gradients(made, expected, leaves, exact)


BEFORE = {"short": [0, 3, 5, 40, 1], "long": [0, 45, 3, 600, 450]}  # of LENGTHS; few keys and many, with and without


def inputs_behind(name, heads, dtype=torch.float32):
    """query (R, Hq, D), key and value (S, Hk, D), cu_seqlens and cu_seqlens_k."""
    queries = torch.tensor(LENGTHS[name])
    _, key, value, bounds_k = inputs((queries + torch.tensor(BEFORE[name])).tolist(), heads, dtype=dtype)
    query, _, _, bounds = inputs(queries.tolist(), heads, dtype=dtype, seed=1)
    return query, key, value, bounds, bounds_k


@pytest.mark.parametrize(
    ("name", "window"), [("short", None), ("short", 1), ("short", 9), ("long", None), ("long", 9), ("long", 600)]
)
@pytest.mark.parametrize("kernel", ["varlen", "masked"])
@pytest.mark.usefixtures("poisoned")
def test_more_keys_than_queries(kernel, name, window):
    *qkv, bounds, bounds_k = inputs_behind(name, HEADS["grouped"])
    exact = [x.double().clone().requires_grad_() for x in qkv]
    expected = brute(*exact, bounds, 0.3, window, bounds_k=bounds_k)
    leaves = [x.clone().requires_grad_() for x in qkv]
    made = packed_attention(
        *leaves, bounds, max(LENGTHS[name]), scale=0.3, window=window, kernel=kernel, cu_seqlens_k=bounds_k
    )
    check_with_gradients(made, expected, leaves, exact)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_more_keys_than_queries_in_other_dtypes(dtype):
    *qkv, bounds, bounds_k = inputs_behind("long", HEADS["grouped"], dtype)
    made = packed_attention(*qkv, bounds, 1100, kernel="varlen", cu_seqlens_k=bounds_k)
    expected = brute(*(x.double() for x in qkv), bounds, 0.25, bounds_k=bounds_k)
    assert (made - expected).abs().max() <= budget(dtype)


def test_softcap_with_more_keys_than_queries():
    *qkv, bounds, bounds_k = inputs_behind("short", HEADS["grouped"])
    made = packed_attention(*qkv, bounds, 33, scale=1.0, window=9, softcap=2.0, cu_seqlens_k=bounds_k)
    expected = brute(*(x.double() for x in qkv), bounds, 1.0, 9, softcap=2.0, bounds_k=bounds_k)
    assert (made - expected).abs().max() <= budget(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    *qkv, bounds = inputs(LENGTHS["short"], HEADS["grouped"], dtype=dtype)
    exact = [x.double().clone().requires_grad_() for x in qkv]
    expected = brute(*exact, bounds, 16**-0.5)
    leaves = [x.clone().requires_grad_() for x in qkv]
    made = packed_attention(*leaves, bounds, 33, kernel="varlen")
    assert made.dtype == dtype
    assert (made - expected).abs().max() <= budget(dtype)
    made.sum().backward()
    expected.sum().backward()
    for leaf, reference in zip(leaves, exact, strict=True):
        allowed = gradient_budget(reference.grad, torch.ones_like(made), qkv[2], 0.25, dtype)
        assert (leaf.grad - reference.grad).abs().max() <= allowed


@pytest.mark.parametrize("window", [None, 9])
def test_softcap(window):
    *qkv, bounds = inputs(LENGTHS["short"], HEADS["grouped"])
    expected = brute(*(x.double() for x in qkv), bounds, 1.0, window, softcap=2.0)
    made = packed_attention(*qkv, bounds, 33, scale=1.0, window=window, softcap=2.0)
    assert (made - expected).abs().max() <= budget(torch.float32)


def test_dropout_keeps_the_mean_and_the_sequences_apart():
    *qkv, bounds = inputs([2, 30], (2, 2))
    made = [packed_attention(*qkv, bounds, 30, dropout=0.5) for _ in range(400)]
    expected = brute(*(x.double() for x in qkv), bounds, 0.25)
    mean = torch.stack(made).mean(0)
    # each weight is 0 or doubled: a standard deviation of at most |v| <= 4 a draw, 5 sigma of 400 draws
    assert (mean - expected).abs().max() <= 5 * 4 / 400**0.5
    assert (made[0] != made[1]).any()


def test_widths_of_values_that_differ():
    query, key, value, bounds = inputs(LENGTHS["short"], HEADS["grouped"])
    made = packed_attention(query, key, value[..., :5], bounds, 33)
    expected = brute(*(x.double() for x in (query, key, value[..., :5])), bounds, 0.25)
    assert (made - expected).abs().max() <= budget(torch.float32)


def test_the_operator_is_well_formed():
    for window in (None, 3):
        query, _, _, bounds = inputs([4, 0, 1, 6], (4, 2), width=8)
        _, key, value, bounds_k = inputs([4, 2, 3, 9], (4, 2), width=8)
        for qkv, ends in (((query, key[:11], value[:11]), bounds), ((query, key, value), bounds_k)):
            leaves = [x.detach().clone().requires_grad_() for x in qkv]
            for given in (qkv, leaves):
                operator = torch.ops.patchrec_fast.varlen_attention.default
                torch.library.opcheck(operator, (*given, bounds, ends, 0.4, window))


@pytest.mark.parametrize("bounds", [[1, 5], [0, 4], [0, 3, 2, 5], [0, 6]])
def test_sequences_that_do_not_divide_the_rows(bounds):
    *qkv, _ = inputs([5], (2, 2))
    with pytest.raises(ValueError, match="cu_seqlens must rise from 0 to the 5 rows, got"):
        varlen_attention(*qkv, torch.tensor(bounds), 1.0)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ([0, 4], "cu_seqlens_k must rise from 0 to the 5 rows"),
        ([0, 2, 5], "at least as many keys as it has queries"),
        ([0, 1, 3, 5], "at least as many keys as it has queries"),
    ],
)
def test_keys_that_do_not_fit_the_queries(bounds, message):
    *qkv, _ = inputs([5], (2, 2))
    with pytest.raises(ValueError, match=message):
        varlen_attention(*qkv, torch.tensor([0, 3, 5]), 1.0, cu_seqlens_k=torch.tensor(bounds))


CHOICES = [
    ("varlen", ("cpu", torch.float32), {}),
    ("varlen", ("cpu", torch.bfloat16), {}),
    ("masked", ("cpu", torch.float32), {"dropout": True}),
    ("masked", ("cpu", torch.float32), {"softcap": True}),
    ("masked", ("cpu", torch.float32), {"widths": (24, 16)}),
    ("masked", ("mps", torch.float16), {}),
    ("varlen", ("cuda", torch.bfloat16), {}),
    ("fa2", ("cuda", torch.bfloat16), {"dropout": True}),
    ("fa2", ("cuda", torch.float16), {"softcap": True}),
    ("flex", ("cuda", torch.float32), {}),
    ("flex", ("cuda", torch.float32), {"softcap": True}),
    ("flex", ("cuda", torch.bfloat16), {"widths": (24, 16)}),
    ("masked", ("cuda", torch.float32), {"dropout": True, "absent": ("fa2",)}),
    ("masked", ("cuda", torch.float32), {"kept": True}),
    ("varlen", ("cuda", torch.bfloat16), {"kept": True}),
    ("flex", ("cuda", torch.bfloat16), {"softcap": True, "absent": ("fa2",)}),
    ("masked", ("cuda", torch.float64), {}),
    ("masked", ("cuda", torch.bfloat16), {"widths": (12, 12)}),
    ("masked", ("cuda", torch.bfloat16), {"widths": (512, 512)}),
]


@pytest.mark.parametrize(("expected", "where", "features"), CHOICES)
def test_which_kernel_serves(monkeypatch, expected, where, features):
    """As if an H200 with flash-attn were here, or without."""
    features = dict(features)
    absent = features.pop("absent", ())
    if where[0] == "cuda":
        monkeypatch.setattr(
            attention, "_absent", lambda kernel, device: "it is not there" if kernel in absent else None
        )
    assert choose("auto", *where, **features) == expected


REASONS = [
    ("varlen", ("mps", torch.float16), {}, "runs on CPU and CUDA tensors, got a tensor on mps"),
    ("varlen", ("cpu", torch.float32), {"dropout": True}, "set the model's attention_dropout to 0"),
    ("varlen", ("cpu", torch.float32), {"softcap": True}, "use 'fa2', 'flex' or 'masked'"),
    ("fa2", ("cpu", torch.float32), {}, "runs on CUDA tensors, got a tensor on cpu"),
    ("flex", ("cpu", torch.float32), {}, "runs on CUDA tensors, got a tensor on cpu"),
    ("flex", ("cuda", torch.float32), {"dropout": True}, "set the model's attention_dropout to 0"),
    ("flex", ("cuda", torch.float32), {"kept": True}, "this call has keys that were kept"),
]


@pytest.mark.parametrize(("kernel", "where", "features", "reason"), REASONS)
def test_a_named_kernel_serves_or_says_why_not(kernel, where, features, reason):
    assert reason in why_not(kernel, *where, **features)
    with pytest.raises(RuntimeError, match=f"attention='{kernel}' cannot serve this call: "):
        choose(kernel, *where, **features)


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (9, None), (None, 2.0), (40, 2.0)])
def test_flex_attention_of_packed_sequences(monkeypatch, window, softcap):
    """Its values, uncompiled on the CPU, of one batch and then of another in the same tensor."""
    monkeypatch.setattr(flex, "why_not", lambda *_: None)  # of the device, not of kept keys
    query, key, value, bounds = inputs([5, 150, 1, 33], HEADS["grouped"])
    options = {"scale": 0.3, "window": window, "softcap": softcap}
    for _ in range(2):
        moved = {"cu_seqlens_k": bounds.clone(), "max_seqlen_k": 190}  # a trainer moves each tensor on its own
        made = packed_attention(query, key, value, bounds, 190, **options, **moved, kernel="flex")
        exact = brute(query.double(), key.double(), value.double(), bounds, 0.3, window, softcap)
        assert (made - exact).abs().max() <= budget(torch.float32)
        bounds.copy_(torch.tensor([0, 70, 71, 72, 189]))


def test_one_forest_a_batch():
    """So that every layer has the block mask of the first."""
    bounds = torch.tensor([0, 3, 7], dtype=torch.int32)
    first = attention._forest(bounds, 7)
    assert attention._forest(bounds, 7) is first
    assert first.position_ids.tolist() == [0, 1, 2, 0, 1, 2, 3]
    bounds[1] = 4
    assert attention._forest(bounds, 7) is not first
    held = len(attention._forests)
    del bounds
    assert len(attention._forests) == held - 1


def test_an_unknown_kernel():
    with pytest.raises(ValueError, match="attention must be one of 'varlen', 'fa2', 'flex', 'masked', got 'fast'"):
        why_not("fast", "cpu", torch.float32)


@pytest.fixture
def machine(monkeypatch):
    """A machine with a GPU, of a given capability and with given distributions."""
    attention._absent.cache_clear()

    def pretend(capability=(9, 0), distributions=()):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a GPU")
        versions = dict(distributions)

        def version(name):
            if name not in versions:
                raise attention.importlib.metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(attention.importlib.metadata, "version", version)

    yield pretend
    attention._absent.cache_clear()


MACHINES = [
    ({"capability": (7, 5)}, "varlen", "needs compute capability 8.0"),
    ({}, "varlen", None),
    ({}, "fa2", "pip install flash-attn"),
    ({"distributions": {"flash-attn-4": "4.0.0"}}, "fa2", "pip install flash-attn"),
    ({"distributions": {"flash-attn": "2.5.9"}}, "fa2", "needs flash-attn>=2.6, got 2.5.9"),
    ({"distributions": {"flash-attn": "2.8.3.post2"}}, "fa2", None),
]


@pytest.mark.parametrize(("facts", "kernel", "reason"), MACHINES)
def test_what_a_machine_lacks(machine, facts, kernel, reason):
    machine(**facts)
    found = why_not(kernel, "cuda", torch.bfloat16)
    assert found is None if reason is None else reason in found


def test_what_the_gpu_kernels_are_told(monkeypatch):
    """No GPU runs here: the arguments that torch's and flash-attn's functions get, by their documentation."""
    import sys
    from types import ModuleType

    calls = []
    package = ModuleType("flash_attn")
    package.flash_attn_varlen_func = lambda *args, **options: calls.append((args, options)) or args[0]
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    import torch.nn.attention.varlen as varlen

    def varlen_attn(*args, scale=None, window_size=(-1, -1), enable_gqa=False):
        calls.append((args, {"scale": scale, "window_size": window_size, "enable_gqa": enable_gqa}))
        return args[0]

    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    monkeypatch.setattr(attention, "choose", lambda kernel, *_, **__: kernel)
    query, key, value, bounds = (x.to("meta") for x in inputs([3, 4], (4, 2), dtype=torch.bfloat16))
    packed_attention(query, key, value, bounds, 4, scale=0.5, window=8, kernel="varlen")
    packed_attention(query, key, value, bounds, 4, scale=0.5, kernel="varlen")
    packed_attention(query, key, value, bounds, 4, window=8, dropout=0.1, softcap=30.0, kernel="fa2")
    for args, _ in calls:
        assert all(a is b for a, b in zip(args, (query, key, value, bounds, bounds, 4, 4), strict=True))
    longer = bounds + 2
    for kernel in ("varlen", "fa2"):
        packed_attention(query, key, value, bounds, 4, kernel=kernel, cu_seqlens_k=longer, max_seqlen_k=6)
        args, _ = calls.pop()
        assert all(a is b for a, b in zip(args, (query, key, value, bounds, longer, 4, 6), strict=True))
    assert [options for _, options in calls] == [
        {"scale": 0.5, "window_size": (7, 0), "enable_gqa": True},
        {"scale": 0.5, "window_size": (-1, 0), "enable_gqa": True},
        {"dropout_p": 0.1, "softmax_scale": 0.25, "causal": True, "window_size": (7, 0), "softcap": 30.0},
    ]
