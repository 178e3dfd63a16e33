# SPDX-License-Identifier: Apache-2.0
"""`compress`: the public function, its validation and its gradient modes."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from .. import backends
from ..backends import IMPLS, Impl
from ..dispatch import dispatcher_needed
from . import gradients, operator
from .embedding import bound_embedding, plain_table
from .plan import Plan, plan_on_device
from .validate import Offsets, check_shapes

GradMode = Literal["dense", "sparse", "accumulate"]
GRAD_MODES: tuple[str, ...] = get_args(GradMode)


def compress(
    ids: Tensor,
    offsets: Offsets,
    weight: Tensor | nn.Module | None = None,
    *,
    impl: Impl = "auto",
    grad_mode: GradMode = "dense",
    plan: Plan | None = None,
) -> Tensor:
    """Looks tokens up and averages them into item and session patches, in one pass.

    One level of offsets gives item patches, row p being the mean of `weight[ids[offsets[p]:offsets[p+1]]]`
    (PatchRec eq. 3). Two levels give session patches, row r being the mean over its items of the mean over each
    item's tokens (eq. 4), so each item weighs the same whatever its title's length. A raw token is a row of one
    item of one token: a copy.

    Args:
        ids: (T,) int32 or int64 token ids.
        offsets: (P+1,) int32 or int64, or the pair `(token_offsets (I+1,), item_offsets (R+1,))`. Each starts at
            0, never decreases, and ends at the length of what it divides. An empty item counts as a zero among
            its row's items; a row with no items is zero; neither gets a gradient.
        weight: (V, d) embedding table in float32, bfloat16 or float16, rows any stride apart (the reference takes
            any floating dtype), or an embedding module. A module that is more than a plain table (PEFT adapter,
            scaled, sharded, hooked) is called on the ids and its output pooled. None takes the table bound by
            `use_embedding`.
        impl: "auto" takes the fastest backend for the tensors; "cpu" (C++), "triton" and "reference" take that one
            or raise RuntimeError saying what is missing.
        grad_mode: what the backward does with the table's gradient. "dense" returns (V, d). "sparse" returns a
            coalesced COO tensor of the ids that occurred. "accumulate" adds into the leaf `weight.grad` in place
            and returns nothing: no (V, d) temporary when a gradient is there already, as with tied embeddings or
            gradient accumulation, but torch.autograd.grad and gradient hooks (DDP, FSDP) do not see it. A
            `weight.grad` that cannot be added to so (expanded, of another dtype, layout or device, sharing the
            weight's memory) is a ValueError in the backward. The last two are for eager mode and first derivatives;
            "dense" also serves compilers, tracers, torch.func and derivatives of any order.
        plan: the batch's schedule made on the host by `make_plan`, moved to the tensors' device. It spares a GPU
            the sort of ids; the CPU does not read it.

    Returns:
        (R, d) in weight's dtype, also under autocast. Sums run in float32 and are rounded once. The gradient is
        deterministic: no atomics, each id's contributions summed in order of occurrence.

    Raises:
        TypeError, ValueError: malformed input, naming the argument. On the CPU that covers the values of ids and
            offsets. A GPU would have to wait for them, so there a row that names an id outside [0, V), or has
            offsets that go backwards or past the end, becomes NaN, with nothing read or written out of bounds;
            `ops.compress.validate.check_values` finds the culprit. A `plan` made on the host has been checked already.
        RuntimeError: no table given or bound, or `impl` cannot serve.
    """
    if impl not in IMPLS:
        raise ValueError(f"impl must be one of {', '.join(map(repr, IMPLS))}, got {impl!r}")
    if grad_mode not in GRAD_MODES:
        raise ValueError(f"grad_mode must be one of {', '.join(map(repr, GRAD_MODES))}, got {grad_mode!r}")
    table = bound_embedding() if weight is None else weight
    if isinstance(table, nn.Module):
        plain = plain_table(table)
        if plain is None:
            return _compress_rows(table, ids, offsets, impl)
        table = plain
    token_offsets, item_offsets = check_shapes(ids, offsets, table)
    schedule = [] if plan is None else _checked_plan(plan, ids, token_offsets, item_offsets, table)
    csr = (ids, token_offsets, item_offsets)
    seen = dispatcher_needed(table, *csr)
    if seen and grad_mode != "dense":
        raise RuntimeError(
            f"grad_mode={grad_mode!r} is for eager mode; use grad_mode='dense' under compilers, tracing modes, "
            "torch.func and forward-mode AD"
        )
    if seen:
        return gradients.apply(table, csr, schedule, impl, table.shape[0], transposed=False)
    if not (torch.is_grad_enabled() and table.requires_grad):
        return operator.compress(table, *csr, schedule, impl)
    if grad_mode == "accumulate" and not table.is_leaf:
        raise ValueError("grad_mode='accumulate' writes weight.grad, so weight must be a leaf tensor")
    if not schedule and backends.choose(impl, table.device.type, table.dtype) == "triton":
        schedule = plan_on_device(*csr, table.shape[0]).tensors()
    return gradients.Linear.apply(table, *csr, schedule, impl, table.shape[0], False, grad_mode)


def _compress_rows(module: nn.Module, ids: Tensor, offsets: Offsets, impl: Impl) -> Tensor:
    """Pools what the module makes of each token: right for any embedding, at the price of its (T, d) output."""
    rows = module(ids)  # (T, d)
    if not isinstance(rows, Tensor) or rows.shape[:-1] != ids.shape:
        got = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise TypeError(f"weight: {type(module).__name__} must map ids (T,) to (T, d), got {got}")
    return compress(torch.arange(ids.shape[0], device=ids.device), offsets, rows, impl=impl)


def _checked_plan(
    plan: Plan, ids: Tensor, token_offsets: Tensor, item_offsets: Tensor | None, table: Tensor
) -> list[Tensor]:
    rows = (token_offsets if item_offsets is None else item_offsets).shape[0] - 1
    made_for = (plan.grad_rows.shape[0], plan.row_offsets.shape[0] - 1)
    if made_for != (ids.shape[0], rows):
        raise ValueError(
            f"plan must be this batch's, of {ids.shape[0]} tokens and {rows} rows; "
            f"got one of {made_for[0]} and {made_for[1]}"
        )
    if plan.row_offsets.device != ids.device:
        raise ValueError(f"plan must be on ids' device {ids.device}, got {plan.row_offsets.device}")
    if plan.max_id is not None and plan.max_id >= table.shape[0]:
        raise ValueError(f"ids must be in [0, {table.shape[0]}), got {plan.max_id}")
    return plan.tensors()
