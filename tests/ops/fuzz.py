# SPDX-License-Identifier: Apache-2.0
"""Random calls of `compress` against float64: `make fuzz`, or `python -m tests.ops.fuzz --seconds 60 --seed 7`.

A case is a function of its seed, which a failure prints: `python -m tests.ops.fuzz --seed N --cases 1` repeats it.
"""

import argparse
import itertools
import random
import sys
import time

import torch
from torch import nn

import patchrec_fast as pf
from patchrec_fast.ops import backends
from patchrec_fast.ops.compress import make_plan
from patchrec_fast.testing import UNIT_ROUNDOFF, Batch, assert_within, backward_budget, forward_budget

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INTEGERS = (torch.int32, torch.int64)
LENGTHS = ([0], [1], [0, 1], [1, 2, 3, 4, 5], [0, 1, 3, 40], [1, 150])


def impls(device="cpu"):
    """The backends that serve there."""
    return [name for name in ("cpu", "triton", "reference") if backends.why_not(name, str(device)) is None]


def case(seed: int, device: str = "cpu") -> None:
    """One random call, forward and backward; AssertionError where a number is further off than rounding explains."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    batch = _batch(rng, num_embeddings := rng.choice([1, 2, 7, 97, 1000]))
    d, dtype = rng.choice([0, 1, 3, 16, 33, 300]), rng.choice(DTYPES)
    impl, mode = rng.choice(["auto", *impls(device)]), rng.choice(["dense", "sparse", "accumulate"])
    if impl == "triton" or (impl == "auto" and device != "cpu"):
        d = max(d, 1)
    torch.set_num_threads(rng.choice([1, 2]))
    weight = _strided(rng, torch.randn(num_embeddings, d).to(dtype)).to(device).detach().requires_grad_()
    moved = Batch(*(None if x is None else _strided(rng, x.unsqueeze(1))[:, 0].to(device) for x in batch))
    before = rng.choice([None, "contiguous", "strided", "columns"]) if mode == "accumulate" else None
    start = torch.zeros(num_embeddings, d, dtype=dtype)
    if before is not None:
        start = torch.randn(num_embeddings, d).to(dtype)
        around = {"contiguous": start.clone(), "strided": torch.zeros(num_embeddings, d + 3, dtype=dtype)[:, :d]}
        around["columns"] = torch.zeros(d, num_embeddings, dtype=dtype).t()
        weight.grad = around[before].to(device)
        weight.grad.copy_(start)
    twice = rng.random() < 0.3 and (mode, dtype) != ("sparse", torch.float16)  # which torch cannot add
    hook, form = rng.random() < 0.3, rng.choice(["tensor", "module", "bound"])
    plan = None
    if rng.random() < 0.5 and (not len(batch.ids) or int(batch.ids.max()) < num_embeddings):
        plan = make_plan(batch.ids, batch.offsets).to(device)

    def call():
        options = {"impl": impl, "grad_mode": mode, "plan": plan}
        if form == "tensor":
            return pf.compress(moved.ids, moved.offsets, weight, **options)
        module = nn.Embedding(1, 1)
        module.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
        module.weight.grad = weight.grad
        leaves.append(module.weight)
        if form == "module":
            return pf.compress(moved.ids, moved.offsets, module, **options)
        with pf.use_embedding(module):
            return pf.compress(moved.ids, moved.offsets, **options)

    leaves: list[torch.Tensor] = []
    seen: list[torch.Tensor] = []
    if form != "tensor":
        weight = nn.Parameter(weight.detach())
        if before is not None:
            weight.grad = around[before].to(device)
    if hook:
        weight.register_hook(seen.append)
    out = call()
    assert (out.dtype, tuple(out.shape)) == (dtype, (_rows(batch), d)), (out.dtype, out.shape)
    assert_within(out.detach().cpu(), *forward_budget(weight.detach().cpu(), batch))
    if hook:
        out.register_hook(lambda grad: grad * 2)
    grad = _gradient(rng, out.shape, dtype)
    arriving = grad.detach().clone() * (2 if hook else 1)
    total = out if not twice else torch.cat([out, call()])
    total.backward((grad if not twice else torch.cat([grad, grad])).to(device))
    found = weight.grad.to_dense() if weight.grad.is_sparse else weight.grad
    _check_gradient(found.cpu(), start, [arriving, grad.detach()] if twice else [arriving], batch, num_embeddings)
    if hook and mode != "accumulate":
        assert seen, "the hook of the weight was not called"


def _check_gradient(found, start, gradients, batch, num_embeddings):
    """Each part and each sum of parts may be rounded to the table's dtype once."""
    exact, budget = start.double(), torch.zeros(start.shape, dtype=torch.float64)
    for grad in gradients:
        part, allowed = backward_budget(grad, batch, num_embeddings)
        exact, budget = exact + part, budget + allowed
        budget = budget + (UNIT_ROUNDOFF[found.dtype] + UNIT_ROUNDOFF[torch.float32]) * (exact.abs() + budget)
    assert_within(found, exact, budget + UNIT_ROUNDOFF[torch.float32] * start.double().abs())


def _rows(batch):
    return (batch.token_offsets if batch.item_offsets is None else batch.item_offsets).numel() - 1


def _batch(rng, num_embeddings):
    """One or two levels: empty rows and items, rows of one token, one id again and again."""
    lengths, offset_dtype = rng.choice(LENGTHS), rng.choice(INTEGERS)
    items = None
    parts = rng.choice([0, 1, 2, 9, 25])
    if rng.random() < 0.6:
        counts = [rng.choice([0, 1, 1, 2, 5]) for _ in range(parts)]
        items = torch.tensor([0, *itertools.accumulate(counts)], dtype=rng.choice(INTEGERS))
        parts = sum(counts)
    tokens = torch.tensor([0, *itertools.accumulate(rng.choice(lengths) for _ in range(parts))], dtype=offset_dtype)
    size = int(tokens[-1])
    ids = torch.randint(0, rng.choice([1, num_embeddings]), (size,))
    if rng.random() < 0.3:
        ids[:] = num_embeddings - 1
    return Batch(ids.to(rng.choice(INTEGERS)), tokens, items)


def _strided(rng, x):
    """The values of x (N, d) behind an offset, rows or columns apart, negated twice, or as they are."""
    n, d = x.shape
    way = rng.choice(["as it is", "offset", "rows apart", "columns apart", "transposed", "negated"])
    if way == "offset":
        return torch.cat([x.new_zeros(3), x.flatten()])[3:].view(n, d)
    if way == "rows apart":
        return torch.cat([x.new_zeros(n, 5), x, x.new_zeros(n, 2)], 1)[:, 5 : 5 + d]
    if way == "columns apart":
        return x.repeat_interleave(2, 1)[:, ::2]
    if way == "transposed":
        return x.t().contiguous().t()
    if way == "negated":
        return torch._neg_view(-x)
    return x


def _gradient(rng, shape, dtype):
    """Dense, or of any strides, expanded along rows, columns or both, or zeros that have no memory."""
    grad = torch.randn(shape).to(dtype)
    way = rng.choice(["strided", "strided", "rows", "columns", "one", "zeros"])
    if way == "rows" and shape[0]:
        return grad[:1].expand(shape)
    if way == "columns" and shape[1]:
        return grad[:, :1].expand(shape)
    if way == "one":
        return torch.ones((), dtype=dtype).expand(shape)
    if way == "zeros":
        return torch._efficientzerotensor(shape, dtype=dtype)
    return _strided(rng, grad)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--cases", type=int, help="stop after so many")
    parser.add_argument("--seed", type=int, default=int(time.time()) * 1000, help="of the first case")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    end, done = time.monotonic() + given.seconds, 0
    while time.monotonic() < end and (given.cases is None or done < given.cases):
        try:
            case(given.seed + done, given.device)
        except BaseException:
            print(f"seed {given.seed + done} fails: python -m tests.ops.fuzz --seed {given.seed + done} --cases 1")
            raise
        done += 1
    print(f"{done} cases, seeds {given.seed} to {given.seed + done - 1}: all within rounding")
    return 0


if __name__ == "__main__":
    sys.exit(main())
