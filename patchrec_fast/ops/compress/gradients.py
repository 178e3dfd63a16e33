# SPDX-License-Identifier: Apache-2.0
"""`compress` under autograd and torch.func: a linear map of the table, and its transpose.

`compress` and `compress_backward` are each other's gradient, so derivatives of any order are these two; each is its own
tangent; and a batch of tables is one table with their columns side by side.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd.function import _SingleLevelFunction

from ..dispatch import PLAIN, dispatcher_needed, forward_ad
from ..memory import overlaps_itself, ranges_meet
from ..schemas import LIBRARY
from . import operator

Csr = tuple[Tensor, Tensor, Tensor | None]  # ids (T,), token_offsets (I+1,), item_offsets (R+1,)


# Single-level: the dispatcher calls this once a torch.func transform, which the public Function would do by itself.
class Linear(_SingleLevelFunction):
    """The map of x (V, d) to (R, d), or transposed of x (R, d) to (V, d)."""

    apply: ClassVar[Callable[..., Tensor]]

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        ids: Tensor,
        token_offsets: Tensor,
        item_offsets: Tensor | None,
        plan: list[Tensor],
        impl: str,
        num_embeddings: int,
        transposed: bool,
        grad_mode: str,
    ) -> Tensor:
        csr = (ids, token_offsets, item_offsets)
        ctx.save_for_backward(*csr, *plan)
        if forward_ad():
            ctx.save_for_forward(*csr, *plan)
        # Saved as it is: a saved tensor comes back as another object under offloading hooks, without this .grad.
        ctx.leaf = x if grad_mode == "accumulate" else None
        ctx.impl, ctx.num_embeddings, ctx.transposed, ctx.grad_mode = impl, num_embeddings, transposed, grad_mode
        if not dispatcher_needed(x, ids, token_offsets, item_offsets):
            return _below(operator, x, csr, plan, impl, num_embeddings, transposed)
        # A Function's forward is without gradients; the transforms around this one, which the call goes on to, are not.
        with (
            torch.enable_grad(),
            torch.autograd.forward_ad._set_fwd_grad_enabled(True),
            torch._C._AutoDispatchBelowAutograd(),
        ):
            return _below(torch.ops.patchrec_fast, x, csr, plan, impl, num_embeddings, transposed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        ids, token_offsets, item_offsets, *plan = ctx.saved_tensors
        csr = (ids, token_offsets, item_offsets)
        if ctx.grad_mode == "dense":
            dx: Tensor | None = apply(grad, csr, plan, ctx.impl, ctx.num_embeddings, not ctx.transposed)
        elif torch.is_grad_enabled() or dispatcher_needed(grad, *csr):
            raise RuntimeError(
                f"grad_mode={ctx.grad_mode!r} has neither a second derivative (create_graph=True) nor a gradient under "
                "torch.func, batched gradients (is_grads_batched=True) or tracing; use grad_mode='dense'"
            )
        elif ctx.grad_mode == "accumulate":
            dx = _accumulate(ctx.leaf, grad, csr, plan, ctx.impl)
        else:
            unique, rows = operator.compress_backward_sparse(grad, *csr, ctx.num_embeddings, plan, ctx.impl)
            size = (ctx.num_embeddings, grad.shape[1])
            dx = torch.sparse_coo_tensor(
                unique.unsqueeze(0), rows, size, device=rows.device, is_coalesced=True, check_invariants=False
            )
        return dx, None, None, None, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        ids, token_offsets, item_offsets, *plan = ctx.saved_tensors
        csr = (ids, token_offsets, item_offsets)
        return apply(tangent, csr, plan, ctx.impl, ctx.num_embeddings, ctx.transposed)


def apply(x: Tensor, csr: Csr, plan: list[Tensor], impl: str, num_embeddings: int, transposed: bool) -> Tensor:
    """The map, differentiable."""
    if dispatcher_needed(x, *csr):
        return _below(torch.ops.patchrec_fast, x, csr, plan, impl, num_embeddings, transposed)
    if torch.is_grad_enabled() and x.requires_grad:
        return Linear.apply(x, *csr, plan, impl, num_embeddings, transposed, "dense")
    return _below(operator, x, csr, plan, impl, num_embeddings, transposed)


def _below(ops: Any, x: Tensor, csr: Csr, plan: list[Tensor], impl: str, size: int, transposed: bool) -> Tensor:
    made: Tensor
    made = ops.compress_backward(x, *csr, size, plan, impl) if transposed else ops.compress(x, *csr, plan, impl)
    return made


def _compress(
    weight: Tensor, ids: Tensor, token_offsets: Tensor, item_offsets: Tensor | None, plan: list[Tensor], impl: str
) -> Tensor:
    return _dispatched(weight, (ids, token_offsets, item_offsets), plan, impl, weight.shape[0], False)


def _compress_backward(
    grad: Tensor,
    ids: Tensor,
    token_offsets: Tensor,
    item_offsets: Tensor | None,
    num_embeddings: int,
    plan: list[Tensor],
    impl: str,
) -> Tensor:
    return _dispatched(grad, (ids, token_offsets, item_offsets), plan, impl, num_embeddings, True)


def _dispatched(x: Tensor, csr: Csr, plan: list[Tensor], impl: str, num_embeddings: int, transposed: bool) -> Tensor:
    if (torch.is_grad_enabled() and x.requires_grad) or forward_ad():
        with enable_single_level_autograd_function():
            return Linear.apply(x, *csr, plan, impl, num_embeddings, transposed, "dense")
    with torch._C._AutoDispatchBelowAutograd():
        return _below(torch.ops.patchrec_fast, x, csr, plan, impl, num_embeddings, transposed)


LIBRARY.impl("compress", _compress, "Autograd")
LIBRARY.impl("compress_backward", _compress_backward, "Autograd")


@torch.library.register_vmap("patchrec_fast::compress")
def _(info: Any, in_dims: Any, weight: Tensor, *rest: Any) -> tuple[Tensor, int]:
    return _batched(torch.ops.patchrec_fast.compress, info.batch_size, in_dims, (weight, *rest))


@torch.library.register_vmap("patchrec_fast::compress_backward")
def _(info: Any, in_dims: Any, grad: Tensor, *rest: Any) -> tuple[Tensor, int]:
    return _batched(torch.ops.patchrec_fast.compress_backward, info.batch_size, in_dims, (grad, *rest))


def _batched(op: Any, size: int, in_dims: Any, arguments: tuple[Any, ...]) -> tuple[Tensor, int]:
    """One call where only the table (or the gradient) is batched; one for each where ids or offsets are."""
    x, *rest = arguments
    dim, *others = in_dims
    if all(isinstance(each, (list, tuple)) or each is None for each in others):
        if any(each is not None for dims in others if dims is not None for each in dims):
            raise RuntimeError("plan must not be batched under torch.func.vmap; leave it out")
        wide = x.movedim(dim, 1)  # (N, B, d)
        return op(wide.flatten(1), *rest).unflatten(1, wide.shape[1:]), 1
    if rest[-2]:
        raise RuntimeError("a plan is of one batch, and torch.func.vmap maps over ids or offsets; leave plan out")

    def at(b: int) -> tuple[Any, ...]:
        dims = (dim, *others)
        return tuple(
            arg.select(d, b) if isinstance(arg, Tensor) and d is not None else arg
            for arg, d in zip(arguments, dims, strict=True)
        )

    return torch.stack([op(*at(b)) for b in range(size)]), 0


def _accumulate(leaf: Tensor, grad: Tensor, csr: Csr, plan: list[Tensor], impl: str) -> Tensor | None:
    """Adds into leaf.grad; the gradient to hand to autograd, which is none unless it is the first."""
    into = leaf.grad
    if into is None:
        return operator.compress_backward(grad, *csr, leaf.shape[0], plan, impl)
    _check_target(into, leaf, grad)
    if ranges_meet(into, grad):
        grad = grad.clone()  # a view of what is written
    operator.compress_backward_(into, grad, *csr, plan, impl)
    torch.autograd.graph.increment_version(into)
    return None


def _check_target(into: Tensor, leaf: Tensor, grad: Tensor) -> None:
    """ValueError unless `into` can be added to in place, each element of it once."""
    wanted = f"grad_mode='accumulate' needs a dense {grad.dtype} weight.grad {tuple(leaf.shape)} on {grad.device}"
    if type(into) not in PLAIN:
        raise ValueError(f"{wanted}, got a {type(into).__name__}")
    if into.layout != torch.strided or (into.dtype, into.device) != (grad.dtype, grad.device):
        raise ValueError(f"{wanted}, got a {into.layout} {into.dtype} one on {into.device}")
    if into.shape != leaf.shape:
        raise ValueError(f"{wanted}, got one of shape {tuple(into.shape)}")
    if into.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(f"{wanted} that may be written, got one made in inference mode; clone it")
    if into._is_zerotensor():
        raise ValueError(f"{wanted}, got zeros without memory (a ZeroTensor); clone it")
    if overlaps_itself(into):
        raise ValueError(f"{wanted}, got one whose elements share memory (strides {into.stride()}); clone it")
    if ranges_meet(into, leaf):
        raise ValueError(f"{wanted} of its own memory, got one that shares the weight's; clone it")
