# SPDX-License-Identifier: Apache-2.0
"""`compress` on a CPU: csrc/ on the tensors' memory."""

import ctypes
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import native
from ..pages import empty, lazy_zeros
from .validate import check_values

_MALFORMED, _NO_MEMORY = 1, 2  # patchrec_status
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_BATCH = struct.Struct("@PPPqqqqii")  # patchrec_batch: three arrays, four sizes, bytes of an id and of an offset


def compress(
    weight: Tensor,
    ids: Tensor,
    token_offsets: Tensor,
    item_offsets: Tensor | None,
    plan: Sequence[Tensor] = (),
) -> Tensor:
    """See `patchrec_fast.compress`; `plan` is for the GPU and not read here."""
    batch = _Csr(ids, token_offsets, item_offsets, weight.shape[0])
    weight, d = _rows(weight), weight.shape[1]
    out = empty(batch.rows, d, weight.dtype)  # (R, d)
    status = native.library().patchrec_compress(
        *(batch.struct, out.data_ptr(), weight.data_ptr(), weight.stride(0)),
        *(d, _DTYPES[weight.dtype], native.run()),
    )
    batch.check(status)
    return out


def compress_backward_sparse(
    grad: Tensor,
    ids: Tensor,
    token_offsets: Tensor,
    item_offsets: Tensor | None,
    num_embeddings: int,
    plan: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """(U,) ascending int64 ids that occur, and (U, d) their gradients."""
    batch = _Csr(ids, token_offsets, item_offsets, num_embeddings)
    grad = batch.checked_grad(grad)
    handle, count = ctypes.c_void_p(), ctypes.c_int64()
    batch.check(native.library().patchrec_transpose(batch.struct, ctypes.byref(handle), ctypes.byref(count)))
    unique = torch.empty(count.value, dtype=torch.int64, device="cpu")
    out = empty(count.value, grad.shape[1], grad.dtype)  # (U, d)
    native.library().patchrec_compress_backward_sparse(
        *(handle, unique.data_ptr(), out.data_ptr(), grad.data_ptr(), grad.stride(0)),
        *(grad.shape[1], _DTYPES[grad.dtype], native.run()),
    )
    return unique, out


def compress_backward(
    grad: Tensor,
    ids: Tensor,
    token_offsets: Tensor,
    item_offsets: Tensor | None,
    num_embeddings: int,
    plan: Sequence[Tensor] = (),
) -> Tensor:
    """(V, d): the gradient of the whole table."""
    out = lazy_zeros(num_embeddings, grad.shape[1], grad.dtype)
    _backward_into(out, grad, ids, token_offsets, item_offsets, accumulate=False)
    return out


def compress_backward_(
    into: Tensor,
    grad: Tensor,
    ids: Tensor,
    token_offsets: Tensor,
    item_offsets: Tensor | None,
    plan: Sequence[Tensor] = (),
) -> None:
    """into (V, d) += the gradient, each row read, added to in float32 and rounded once."""
    rows = _rows(into)
    _backward_into(rows, grad, ids, token_offsets, item_offsets, accumulate=True)
    if rows is not into:  # at an address that is no multiple of the element
        into.copy_(rows)


def _backward_into(
    into: Tensor,
    grad: Tensor,
    ids: Tensor,
    token_offsets: Tensor,
    item_offsets: Tensor | None,
    *,
    accumulate: bool,
) -> None:
    batch = _Csr(ids, token_offsets, item_offsets, into.shape[0])
    grad = batch.checked_grad(grad)
    status = native.library().patchrec_compress_backward(
        *(batch.struct, into.data_ptr(), into.stride(0), grad.data_ptr(), grad.stride(0)),
        *(grad.shape[1], _DTYPES[grad.dtype], int(accumulate), native.run()),
    )
    batch.check(status)


class _Csr:
    """A batch as the C struct, with the tensors it points into."""

    __slots__ = ("ids", "item_offsets", "num_embeddings", "rows", "struct", "token_offsets")

    def __init__(self, ids: Tensor, token_offsets: Tensor, item_offsets: Tensor | None, num_embeddings: int) -> None:
        if item_offsets is not None and item_offsets.dtype != token_offsets.dtype:
            item_offsets = item_offsets.to(token_offsets.dtype)
        self.ids = ids = ids.contiguous()
        self.token_offsets = token_offsets = token_offsets.contiguous()
        self.item_offsets = None if item_offsets is None else item_offsets.contiguous()
        self.num_embeddings = num_embeddings
        items = token_offsets.numel() - 1
        self.rows = items if item_offsets is None else item_offsets.numel() - 1
        if items < 0 or self.rows < 0:
            self.check(_MALFORMED)
        if num_embeddings >= 2**31 or self.rows >= 2**31:
            raise ValueError(
                f"the numbers of embeddings and of rows must be below 2**31, got {num_embeddings} and {self.rows}"
            )
        self.struct = _BATCH.pack(
            ids.data_ptr(),
            token_offsets.data_ptr(),
            0 if self.item_offsets is None else self.item_offsets.data_ptr(),
            ids.numel(),
            items,
            self.rows,
            num_embeddings,
            ids.element_size(),
            token_offsets.element_size(),
        )

    def checked_grad(self, grad: Tensor) -> Tensor:
        """The gradient of the output, rows contiguous, once its size is known to fit."""
        if grad.ndim != 2 or grad.shape[0] != self.rows:
            raise ValueError(f"grad must be ({self.rows}, d), got shape {tuple(grad.shape)}")
        return _rows(grad)

    def check(self, status: int) -> None:
        if status == _MALFORMED:
            check_values(self.ids, self.token_offsets, self.item_offsets, self.num_embeddings)  # names the fault
            raise RuntimeError("ids or offsets were malformed, and are not any more: another thread writes them")
        if status == _NO_MEMORY:
            raise MemoryError(f"no memory to group {self.ids.shape[0]} tokens by {self.num_embeddings} ids")


def _rows(x: Tensor) -> Tensor:
    """x where its rows are contiguous and aligned to the element (any row stride), else a copy that is."""
    if x.data_ptr() % x.element_size():
        return x.clone()
    return x if x.stride(1) == 1 else x.contiguous()
