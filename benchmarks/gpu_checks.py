# SPDX-License-Identifier: Apache-2.0
"""Whether a device computes what it should: our kernels and theirs, a training step and a search, each against float64
or the CPU.

A check gives rows whose `error` is the largest error over what rounding allows, at most 1, or raises AssertionError.
"""

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from patchrec_fast import Packer, Recommender, attach, compress, testing
from patchrec_fast.hf.attention import packed_attention
from patchrec_fast.models import random_model
from patchrec_fast.ops.attention.tree import tree_attention
from patchrec_fast.ops.compress import make_plan
from patchrec_fast.ops.log_sum_exp import finished, log_sum_exp
from patchrec_fast.testing import UNIT_ROUNDOFF
from tests.ops import trees as cases

from . import bench_decode
from .bench_train import POLICIES as STAGES
from .bench_train import batches
from .peers import OURS
from .results import Row
from .source import Source

MODES = ("dense", "accumulate", "sparse")
_VOCABULARY = 1009  # of the small tables
_LARGE = 1_100_000, 2048  # 2.25 * 10**9 numbers, more than int32 counts
_KEPT = 500  # of the large table's rows: the last, whose addresses are beyond
_FACTOR = 3.0  # times the error of plain attention in the same dtype
_SEQUENCES = ((3, 3), (30, 50), (1, 200), (64, 64))  # queries and keys


def compress_modes(place: str, dtype: torch.dtype, d: int, rows: int) -> Iterator[Row]:
    """Forward and each gradient mode, with the plan that a data loader makes and without, and the same bits again."""
    batch = testing.ragged_batch(rows, _VOCABULARY, seed=d)
    generator = torch.Generator().manual_seed(d)
    weight = torch.randn(_VOCABULARY, d, generator=generator).to(dtype)
    upstream = torch.randn(rows, d, generator=generator).to(dtype)
    forward = testing.forward_budget(weight, batch)
    backward = testing.backward_budget(upstream, batch, _VOCABULARY)
    ids, offsets = batch.ids.to(place), _moved(batch, place)
    for plan in (make_plan(batch.ids, batch.offsets).to(place), None):
        for mode in MODES:
            found = [_gradient(ids, offsets, weight.to(place), upstream.to(place), mode, plan) for _ in range(2)]
            assert torch.equal(found[0][1], found[1][1]), f"{mode}: another gradient at the second call"
            error = max(_share(found[0][0], *forward), _share(found[0][1], *backward))
            yield _row(error, mode=mode, contestant=OURS if plan is not None else f"{OURS}, no plan", rows=rows)


def _moved(batch: testing.Batch, place: str) -> tuple[Tensor, Tensor]:
    assert batch.item_offsets is not None
    return batch.token_offsets.to(place), batch.item_offsets.to(place)


def _gradient(
    ids: Tensor, offsets: Any, weight: Tensor, upstream: Tensor, mode: Any, plan: Any
) -> tuple[Tensor, Tensor]:
    """The output, and the gradient of the table, dense."""
    table = weight.clone().requires_grad_()
    if mode == "accumulate":
        table.grad = torch.zeros_like(table)
    out = compress(ids, offsets, table, grad_mode=mode, plan=plan)
    out.backward(upstream)
    assert table.grad is not None
    return out.detach(), table.grad.to_dense()


def compress_large(place: str) -> Iterator[Row]:
    """A table of more than 2^31 numbers: rows and gradients at its end, and zeros before."""
    vocabulary, d = _LARGE
    batch = testing.ragged_batch(200, _KEPT, seed=1)
    table = torch.empty(vocabulary, d, dtype=torch.bfloat16, device=place).normal_().requires_grad_()
    ids, offsets = (batch.ids + vocabulary - _KEPT).to(place), _moved(batch, place)
    upstream = torch.randn(200, d).to(torch.bfloat16)
    plan = make_plan(ids.cpu(), batch.offsets).to(place)
    out = compress(ids, offsets, table, plan=plan)
    out.backward(upstream.to(place))
    assert table.grad is not None
    assert not table.grad[:-_KEPT].any(), "a gradient of rows that do not occur"
    forward = testing.forward_budget(table.detach()[-_KEPT:].cpu(), batch)
    error = max(_share(out, *forward), _share(table.grad[-_KEPT:], *testing.backward_budget(upstream, batch, _KEPT)))
    yield _row(error, mode="dense", contestant=OURS, rows=200)


def trees(place: str, dtype: torch.dtype, d: int, splits: int | None = None, **rules: Any) -> Iterator[Row]:
    """One decode step, one user of it absent; `splits` are over how many programs a prompt is, on a GPU."""
    counts, lengths = [5, 2, 0, 21], [70, 0, 1, 150]
    made = cases.make(counts, lengths, key_heads=2, group=4, d=d, columns=20, dtype=dtype, device=place)
    sizes: dict[str, Any] = {"max_rows": 21, "max_seqlen": 300, "scale": d**-0.5, **rules}
    if splits is None:
        got = tree_attention(*made, **sizes)
    else:
        from patchrec_kernels import tree_attention as kernels

        got = kernels.tree_attention(*made, **sizes, splits=splits)
    unit = UNIT_ROUNDOFF[dtype]
    weight = 0.0 if dtype == torch.float32 else 2 * unit
    bounds = cases.exact(made, scale=d**-0.5, weight=weight, result=unit, **rules)
    yield _row(_share(got, *bounds), contestant=OURS, rows=sum(counts))


def varlen(place: str, dtype: torch.dtype, d: int, window: int | None) -> Iterator[Row]:
    """Packed attention with fewer queries than keys, forward and backward, by each kernel that serves.

    Errors in the largest norm, from float64 on the same inputs, over `_FACTOR` times those of plain attention in the
    same dtype, as FlashAttention's own tests compare.
    """
    generator = torch.Generator().manual_seed(d)
    queries, keys = ([pair[side] for pair in _SEQUENCES] for side in (0, 1))
    shapes = (sum(queries), 8, d), (sum(keys), 2, d), (sum(keys), 2, d), (sum(queries), 8, d)
    inputs = [torch.randn(shape, generator=generator).to(place, dtype) for shape in shapes]
    allowed = _allowed(queries, keys, window).to(place)
    exact, plain = (
        _with_gradients(lambda q, k, v: _plain(q, k, v, allowed), inputs, to) for to in (torch.float64, dtype)
    )
    bounds = [cases.csr(lengths).to(place) for lengths in (queries, keys)]
    for kernel in ("varlen", "masked"):

        def served(q: Tensor, k: Tensor, v: Tensor, kernel: str = kernel) -> Tensor:
            most = {"max_seqlen_k": max(keys), "window": window, "kernel": kernel}
            return packed_attention(q, k, v, bounds[0], max(queries), cu_seqlens_k=bounds[1], **most)  # type: ignore[arg-type]

        found = _with_gradients(served, inputs, dtype)
        errors = [
            _largest(got - want) / (_FACTOR * _largest(low - want) + 1e-5)
            for got, want, low in zip(found, exact, plain, strict=True)
        ]
        yield _row(max(errors), contestant=f"{kernel} attention", rows=sum(queries))


def _allowed(queries: list[int], keys: list[int], window: int | None) -> Tensor:
    """(R, S) bool: the queries of a sequence are its last rows."""
    blocks = []
    for n, size in zip(queries, keys, strict=True):
        back = torch.arange(size - n, size).unsqueeze(1) - torch.arange(size)
        blocks.append((back >= 0) & (back < (window or size)))
    return torch.block_diag(*blocks).bool()


def _plain(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """(R, Hq, D): each operation in the inputs' dtype."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    logits = torch.einsum("nhd,mhd->hnm", q * q.shape[2] ** -0.5, k).masked_fill(~allowed, -torch.inf)
    return torch.einsum("hnm,mhd->nhd", logits.softmax(-1), v)


def _with_gradients(function: Any, inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The output and the gradients of queries, keys and values, float64; the last of the inputs is the output's."""
    *leaves, upstream = (x.to(dtype) for x in inputs)
    leaves = [x.detach().requires_grad_() for x in leaves]
    out = function(*leaves)
    return [x.detach().double() for x in (out, *torch.autograd.grad(out, leaves, upstream))]


def log_sums(place: str, dtype: torch.dtype, softcap: float | None) -> Iterator[Row]:
    """The log-sum-exp of a head's logits, a row's side by side as in decoding, and a word's as in the loss."""
    made = torch.randn(33, 9001, generator=torch.Generator().manual_seed(1)).mul(4).to(dtype)
    logits = finished(made.double(), softcap=softcap)
    # A logit is rounded by its cap (a sigmoid, two sums, two products) and its distance to the largest; then the sum.
    allowed = UNIT_ROUNDOFF[torch.float32] * ((12 if softcap else 4) * logits.abs().amax(1).clamp(min=1) + 64)
    for mode, x in (("rows", made.to(place)), ("columns", made.mT.contiguous().to(place).mT)):
        error = _share(log_sum_exp(x, softcap=softcap), logits.logsumexp(1), allowed)
        yield _row(error, mode=mode, contestant=OURS, rows=len(made))


def step(place: str, source: Source, share: bool, users: int = 2) -> Iterator[Row]:
    """A bfloat16 training step of an attached model: loss and gradients beside the same step in float64.

    Errors in the 2-norm of each parameter's gradient, over `_FACTOR` times those of the step on masked attention.
    """
    shape = "100m" if place == "cuda" else "tiny"  # of heads as wide as people's
    model = random_model(shape, source.prompt.num_embeddings, torch.bfloat16, torch.device(place)).train()
    made = [batches(source, STAGES["pft-s"], users, 1, share=each)[0].to(place) for each in (share, False)]
    runs = [(made[0], "auto", torch.bfloat16), (made[1], "masked", torch.bfloat16), (made[1], "masked", torch.float64)]
    ours, masked, exact = (_step(model, *run) for run in runs)
    loss = abs(float(ours[0] - exact[0])) / (0.02 * abs(float(exact[0])))
    worst = max(
        float((got - want).norm() / (_FACTOR * (low - want).norm() + 2.0**-8 * want.norm() + 1e-12))
        for got, low, want in zip(ours[1:], masked[1:], exact[1:], strict=True)
    )
    yield _row(max(loss, worst), contestant=OURS, rows=len(made[0].position_ids), loss=round(float(ours[0]), 4))


def _step(model: Any, batch: Any, attention: str, dtype: torch.dtype) -> list[Tensor]:
    """The loss and every gradient, float64."""
    own = copy.deepcopy(model).to(dtype)
    attach(own, attention)
    loss = own(**batch.model_inputs()).loss
    loss.backward()
    return [loss.detach().double(), *(weight.grad.double() for weight in own.parameters())]


def beams(place: str, source: Source, users: int = 2) -> Iterator[Row]:
    """Titles in float32 with CUDA graphs, without, and as it comes, against the CPU's."""
    for name, policy in bench_decode.POLICIES.items():
        packer = Packer(source.catalogue, source.prompt, policy, bench_decode.ITEMS)
        model = bench_decode.tiny(source.prompt.num_embeddings)
        histories = bench_decode.histories_of(source, users)
        expected = Recommender(model, packer).recommend(histories, bench_decode.BEAMS)
        rec = Recommender(model.to(place), packer)
        for graphs in (False, True, None) if place == "cuda" else (False, None):
            got = rec.recommend(histories * 3, bench_decode.BEAMS, cuda_graphs=graphs, batch_size=users)
            assert got.items.tolist() == expected.items.tolist() * 3, (
                f"cuda_graphs={graphs}: other titles than the CPU's"
            )
            far = max(abs(got.scores[at : at + users] - expected.scores).max() for at in range(0, 3 * users, users))
            yield _row(float(far) / 1e-3, mode=name, contestant=f"{OURS}, cuda_graphs={graphs}", users=users)


def waiting_model(place: str, source: Source) -> Iterator[Row]:
    """A model that waits for the device inside its step: it is launched from Python, with a warning, the answers are
    the same, the current stream is what it was, and the device goes on to serve; asked for by name, it raises."""
    packer = Packer(source.catalogue, source.prompt, bench_decode.POLICIES["SessionPatches(5)"], bench_decode.ITEMS)
    histories = bench_decode.histories_of(source, 2)
    model, fresh = (bench_decode.tiny(source.prompt.num_embeddings, quick=True).to(place) for _ in range(2))
    histories, asked = histories * 3, {"batch_size": len(histories)}  # a call is captured at its second use
    expected = Recommender(model, packer).recommend(histories, cuda_graphs=False, **asked).items.tolist()

    def wait(module: Any, inputs: Any, out: Tensor) -> None:
        out.sum().item()

    model.model.layers[0].mlp.register_forward_hook(wait)
    rec, before = Recommender(model, packer), torch.cuda.current_stream()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        got = rec.recommend(histories, **asked).items.tolist()
    assert torch.cuda.current_stream() == before, "the current stream is another"
    assert any("cannot be captured" in str(each.message) for each in seen), "no warning"
    assert got == expected, "other titles"
    raised = ""
    try:
        rec.recommend(histories, cuda_graphs=True, **asked)
    except RuntimeError as error:
        raised = str(error)
    assert "cannot be captured" in raised, f"cuda_graphs=True raised {raised!r}"
    assert torch.cuda.current_stream() == before, "the current stream is another after an error"
    again = Recommender(fresh, packer).recommend(histories, cuda_graphs=True, **asked).items.tolist()
    assert again == expected, "other titles with a graph afterwards"
    yield _row(0.0, contestant=OURS)


def _share(got: Tensor, exact: Tensor, allowed: Tensor) -> float:
    """The largest error over what is allowed; AssertionError above 1, or of NaN."""
    error = (got.detach().cpu().double() - exact).abs()
    share = torch.where(error == 0, 0.0, error / allowed)
    return _checked(float(share.nan_to_num(torch.inf).max()))


def _largest(x: Tensor) -> float:
    return float(x.abs().max().nan_to_num(torch.inf))


def _row(error: float, **columns: str | int | float) -> Row:
    return {**columns, "error": float(f"{_checked(error):.3g}")}


def _checked(error: float) -> float:
    assert error <= 1, f"the error is {error:.3g} times what rounding allows"
    return error
