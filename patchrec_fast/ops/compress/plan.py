# SPDX-License-Identifier: Apache-2.0
"""What the kernels need to know about a batch besides its ids, made once a batch.

The two-level mean is one weighted sum over the flattened CSR, and its gradient is the same sum
over that CSR inverted by id:

    out[r]      = sum of token_weight[t] * weight[ids[t]]   over the tokens t of row r
    dweight[id] = sum of token_weight[t] * grad[row(t)]     over the tokens t with that id

`make_plan` runs where the batch is made (a data loader's worker), `plan_on_device` where the batch
already is (no wait for the device, sizes fixed by shapes: it can be captured in a CUDA graph).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from ..memory import in_memory
from ..transfer import together

CHUNK = 128
"""Most tokens one program sums in the gradient. Under Zipf's law the commonest of 100,000 ids has
8,000 tokens; in pieces of 128 the longest program is 60 times shorter for 1 % more programs."""

UNUSED = -(2**31)
"""`chunk_unit` of a chunk that does not exist (padding)."""

LIMIT = 2**31 - CHUNK
"""Sizes and ids stay below this: int32 holds them, and a kernel may count a tile past them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A batch's rows and its tokens grouped by id. T tokens, R rows, U distinct ids.

    Attributes:
        row_offsets: (R+1,) int32; row r holds the tokens row_offsets[r] to row_offsets[r+1].
            `~start` in place of `start` marks a row whose offsets are malformed (device only).
        token_weight: (T,) float32; 1 / (items of the token's row * tokens of its item).
        long_rows: (L,) int32; every row not in single_rows, most tokens first (device: unsorted).
        single_rows: (S,) int32; rows of one item of one token: copies (device: none, all are long).
        grad_rows: (T,) int32; each token's row. This and the rest are for the gradient, over the tokens sorted by id,
            in their own order where ids are equal.
        grad_weight: (T,) float32; each token's weight.
        chunk_offsets: (C+1,) int32; ranges of grad_rows, one id and at most CHUNK tokens each.
        chunk_unit: (C,) int32; u >= 0: the chunk is all of distinct id number u; ~slot < 0: it is
            the partial sum number `slot` of a longer id; UNUSED: padding.
        unique_ids: (U,) int32; the distinct ids, ascending; -1: padding.
        merge_offsets: (M+1,) int32; ranges of partial sums, those of one id each.
        merge_unit: (M,) int32; the number of that distinct id; -1: padding.
        max_id: the largest id, for checking against a table on the host; -1: no tokens;
            None: not known without asking the device.
    """

    row_offsets: Tensor
    token_weight: Tensor
    long_rows: Tensor
    single_rows: Tensor
    grad_rows: Tensor
    grad_weight: Tensor
    chunk_offsets: Tensor
    chunk_unit: Tensor
    unique_ids: Tensor
    merge_offsets: Tensor
    merge_unit: Tensor
    max_id: int | None = field(default=None, kw_only=True)

    @property
    def partials(self) -> int:
        """Partial sums the chunks write: every id not merged is one chunk, so C - (U - M)."""
        return self.chunk_unit.numel() - self.unique_ids.numel() + self.merge_unit.numel()

    @property
    def padded(self) -> bool:
        """Whether sizes are bounds. Real merges have two partials or more; bounds break that."""
        return self.partials < 2 * self.merge_unit.numel()

    def tensors(self) -> list[Tensor]:
        """The tensors, in the order of the fields: what the registered op and the kernels take."""
        return [getattr(self, each.name) for each in fields(self) if each.name != "max_id"]

    @classmethod
    def from_tensors(cls, tensors: Sequence[Tensor]) -> Plan:
        """The plan of `tensors()`; max_id is not known."""
        expected = len(fields(cls)) - 1
        if len(tensors) != expected:
            raise ValueError(f"plan: got {len(tensors)} tensors, expected {expected}")
        return cls(*tensors)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Plan:
        """This plan on `device`: from host memory to a GPU in one copy, for which the host does not wait."""
        moved = iter(together(self.tensors(), device, non_blocking))
        return self.map(lambda tensor: next(moved))

    def pin_memory(self) -> Plan:
        """This plan in page-locked memory."""
        return self.map(lambda tensor: tensor.pin_memory())

    def map(self, move: Callable[[Tensor], Tensor]) -> Plan:
        """A plan of moved tensors, in the order of `tensors`."""
        return replace(Plan.from_tensors([move(tensor) for tensor in self.tensors()]), max_id=self.max_id)


def make_plan(ids: Any, offsets: Any) -> Plan:
    """The plan of a batch in host memory, exact in every size.

    Args:
        ids: (T,) int32 or int64, each >= 0; a CPU tensor or an array.
        offsets: (P+1,) int32 or int64 (one level), or a pair of (I+1,) and (R+1,) (two levels).
            Each starts at 0, never decreases and ends at the number of what it divides.

    Raises:
        TypeError: not a CPU tensor or array, or not int32 or int64.
        ValueError: not 1-D, or any of the conditions above does not hold.
    """
    ids = _host_array("ids", ids).astype(np.int64)  # a copy: what is checked is what is used
    two_level = isinstance(offsets, tuple | list)
    if two_level and len(offsets) != 2:
        raise ValueError(f"offsets: got {len(offsets)} of them, expected one or a pair")
    if two_level:
        tokens = _host_offsets("offsets[0]", offsets[0], "ids", ids.size)
        items = _host_offsets("offsets[1]", offsets[1], "items", tokens.size - 1)
    else:
        tokens = _host_offsets("offsets", offsets, "ids", ids.size)
        items = np.arange(tokens.size)
    if ids.size and int(ids.min()) < 0:
        where = int(np.argmax(ids < 0))
        raise ValueError(f"ids: got {ids[where]} at position {where}, expected ids >= 0")
    max_id = int(ids.max()) if ids.size else -1
    for name, size in (("ids", ids.size), ("rows", items.size), ("the largest id", max_id)):
        if size >= LIMIT:
            raise ValueError(f"{name}: got {size}, expected less than {LIMIT} (held in int32)")

    row_offsets = tokens[items]  # (R+1,)
    items_in_row, tokens_in_item = np.diff(items), np.diff(tokens)
    tokens_in_row = np.diff(row_offsets)
    share = np.maximum(np.repeat(items_in_row, items_in_row) * tokens_in_item, 1)  # (I,)
    token_weight = np.repeat((1.0 / share).astype(np.float32), tokens_in_item)  # (T,)
    single = (items_in_row == 1) & (tokens_in_row == 1)
    long_rows = np.flatnonzero(~single)
    long_rows = long_rows[np.argsort(-tokens_in_row[long_rows], kind="stable")]

    # Id and position in one integer: a plain sort is then a stable one, and several times faster.
    keys = np.sort((ids << 32) | np.arange(ids.size))
    order, sorted_ids = keys & 0xFFFFFFFF, keys >> 32  # (T,)
    starts = np.flatnonzero(np.diff(sorted_ids, prepend=-1))  # (U,) first token of each distinct id
    counts = np.diff(starts, append=ids.size)
    chunks = -(-counts // CHUNK)  # (U,) chunks of each distinct id
    unit = np.repeat(np.arange(starts.size), chunks)  # (C,)
    within = np.arange(unit.size) - np.repeat(np.cumsum(chunks) - chunks, chunks)  # (C,) 0, 1, ...
    merged = chunks > 1
    partial = merged[unit]
    token_row = np.repeat(np.arange(items.size - 1), tokens_in_row)  # (T,)
    return Plan(
        row_offsets=_int32(row_offsets),
        token_weight=torch.from_numpy(token_weight),
        long_rows=_int32(long_rows),
        single_rows=_int32(np.flatnonzero(single)),
        grad_rows=_int32(token_row[order]),
        grad_weight=torch.from_numpy(token_weight[order]),
        chunk_offsets=_int32(np.append(starts[unit] + within * CHUNK, ids.size)),
        chunk_unit=_int32(np.where(partial, ~(np.cumsum(partial) - 1), unit)),
        unique_ids=_int32(sorted_ids[starts]),
        merge_offsets=_int32(np.append(0, np.cumsum(chunks[merged]))),
        merge_unit=_int32(np.flatnonzero(merged)),
        max_id=max_id,
    )


def plan_on_device(
    ids: Tensor,
    token_offsets: Tensor,
    item_offsets: Tensor | None,
    num_embeddings: int,
    *,
    gradient: bool = True,
) -> Plan:
    """The plan of a batch already on its device, made there without waiting for the device.

    Every size is a bound that shapes alone give, so the call can be captured in a CUDA graph and
    replayed on other contents: outside one it costs some 55 launches, 135 with the gradient.
    No content is an error (that would take a wait); instead a row is marked when it, or one of its
    items, has offsets that decrease, leave their range or (first and last) miss its ends, and its
    tokens take no part in the gradient; neither do ids outside [0, num_embeddings).

    Args:
        ids: (T,) int32 or int64.
        token_offsets: (I+1,) int32 or int64.
        item_offsets: (R+1,) int32 or int64, or None where every item is a row.
        num_embeddings: V.
        gradient: False leaves the gradient's fields empty, which saves the sort.

    Raises:
        ValueError: offsets without an element, or a size that int32 cannot hold.
    """
    T, V, device = ids.numel(), num_embeddings, ids.device
    for name, size in (("ids", T), ("num_embeddings", V), ("token_offsets", token_offsets.numel())):
        if size >= LIMIT:
            raise ValueError(f"{name}: got {size}, expected less than {LIMIT} (held in int32)")
    tokens = _segments("token_offsets", token_offsets, T)
    if item_offsets is None:
        item_offsets = torch.arange(token_offsets.numel(), device=device)
    items = _segments("item_offsets", item_offsets, token_offsets.numel() - 1)
    R = items.good.numel()

    bad_items = _counts(~tokens.good)[items.offsets]  # (R+1,) malformed items before each row
    good_row = items.good & (bad_items[1:] == bad_items[:-1])
    row_offsets = tokens.offsets[items.offsets]
    row_offsets = torch.cat([torch.where(good_row, row_offsets[:-1], ~row_offsets[:-1]), row_offsets[-1:]])
    token_row, token_weight = ids.new_zeros(T), torch.zeros(T, dtype=torch.float32, device=device)
    taken = torch.zeros(T, dtype=torch.bool, device=device)
    if tokens.good.numel() and R:
        token_item = _owner(tokens.offsets, T)
        token_row = _owner(items.offsets, tokens.good.numel())[token_item]
        taken = tokens.good[token_item] & good_row[token_row]
        share = items.offsets.diff()[token_row] * tokens.offsets.diff()[token_item]  # (T,)
        weight = (1.0 / share.double()).float()  # the host's own two roundings
        token_weight = torch.where(taken, weight, 0.0)

    nothing = torch.empty(0, dtype=torch.int32, device=device)
    plan = Plan(
        row_offsets=row_offsets.int(),
        token_weight=token_weight,
        long_rows=torch.arange(R, dtype=torch.int32, device=device),
        single_rows=nothing,
        grad_rows=nothing,
        grad_weight=torch.empty(0, dtype=torch.float32, device=device),
        chunk_offsets=nothing,
        chunk_unit=nothing,
        unique_ids=nothing,
        merge_offsets=nothing,
        merge_unit=nothing,
    )
    if not gradient:
        return plan
    key = torch.where(taken & (ids >= 0) & (ids < V), ids, V).int()  # V sorts behind every id
    return replace(plan, **_group_by_id(key, token_row, token_weight, V))


def _group_by_id(key: Tensor, token_row: Tensor, token_weight: Tensor, V: int) -> dict[str, Any]:
    """The gradient's fields, padded; tokens whose key (T,) is V belong to no id.

    The k-th of anything is found by searching its running count for k + 1: gathers only, so the
    result is the same every time, and no size depends on contents.

    Bounds, with n tokens of one id, U ids and K = T // CHUNK. An id has ceil(n / CHUNK) chunks,
    that is at most (n - 1) // CHUNK + 1, so the chunks are at most U + K. An id is merged if
    n > CHUNK, so at most K are. Its chunks are then at most 2n / (CHUNK + 1), equal at
    n = CHUNK + 1 (each further chunk takes CHUNK more tokens), so the partials are at most
    2T / (CHUNK + 1) < 2K + 2. With U + K chunks and K + 1 merges the partials allotted,
    C - U + M = 2K + 1, are enough, and fewer than 2M: that is how `padded` knows.
    """
    T, device = key.numel(), key.device
    U, K = min(T, V), T // CHUNK
    C, M = U + K, K + 1
    if T == 0:
        key = key.new_full((1,), V)
        token_row, token_weight = token_row.new_zeros(1), token_weight.new_zeros(1)
    key, order = torch.sort(key, stable=True)
    real = key < V
    total = real.sum()
    before = torch.cat([key.new_full((1,), -1), key[:-1]])
    head = real & (key != before)  # first token of an id
    unit = head.cumsum(0) - 1
    starts = _positions(head, U + 1).clamp(max=total)  # (U+1,)
    position = torch.arange(key.numel(), device=device) - _at(starts, unit)
    chunk_head = real & (position % CHUNK == 0)
    chunk_offsets = _positions(chunk_head, C + 1).clamp(max=total)  # (C+1,)

    first = chunk_offsets[:-1]
    used = first < total
    chunk_unit = _at(unit, first)  # (C,)
    partial = used & (_at(starts.diff(), chunk_unit) > CHUNK)
    slot = partial.cumsum(0) - 1
    chunk_unit = torch.where(partial, ~slot, chunk_unit)

    merged = starts.diff() > CHUNK  # (U,)
    chunks = torch.where(merged, (starts.diff() + (CHUNK - 1)) // CHUNK, 0)
    merge_unit = _positions(merged, M)
    merges = torch.where(merge_unit < U, _at(chunks, merge_unit), 0)
    return {
        "grad_rows": token_row[order][:T].int(),
        "grad_weight": token_weight[order][:T],
        "chunk_offsets": chunk_offsets.int(),
        "chunk_unit": torch.where(used, chunk_unit, UNUSED).int(),
        "unique_ids": torch.where(starts[:-1] < total, _at(key, starts[:-1]), -1).int(),
        "merge_offsets": _counts(merges).int(),
        "merge_unit": torch.where(merge_unit < U, merge_unit, -1).int(),
    }


class _Segments(NamedTuple):
    """offsets (n+1,) int64, never decreasing, from 0 to the end; good (n,): unchanged by that."""

    offsets: Tensor
    good: Tensor


def _segments(name: str, offsets: Tensor, end: int) -> _Segments:
    if offsets.numel() == 0:
        raise ValueError(f"{name}: got no element, expected one more than segments")
    given = offsets.long()
    inside = torch.where((given >= 0) & (given <= end), given, 0)
    inside[:1].fill_(0)
    inside[-1:].fill_(end)
    made = inside.cummax(0).values
    same = made == given
    return _Segments(made, same[:-1] & same[1:])


def _owner(offsets: Tensor, n: int) -> Tensor:
    """(n,) the segment of each element, of segments (s+1,) from 0 to n."""
    return torch.searchsorted(offsets, torch.arange(n, device=offsets.device), right=True) - 1


def _positions(flag: Tensor, n: int) -> Tensor:
    """(n,) positions of the first n set flags; len(flag) for those that are not there."""
    return torch.searchsorted(flag.cumsum(0), torch.arange(1, n + 1, device=flag.device))


def _counts(values: Tensor) -> Tensor:
    """(n+1,) sums of the values (n,) before each position."""
    return torch.cat([torch.zeros(1, dtype=torch.int64, device=values.device), values.cumsum(0)])


def _at(values: Tensor, index: Tensor) -> Tensor:
    """values[index], the index held inside; an index outside is padding, its value not used."""
    if values.numel() == 0:
        return torch.zeros_like(index)
    return values[index.clamp(0, values.numel() - 1)]


def _host_array(name: str, value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        if value.device.type != "cpu":
            raise TypeError(f"{name}: got a tensor on {value.device}, expected one on the CPU")
        value = in_memory(name, value.detach()).numpy()
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a tensor or an array")
    if value.dtype not in (np.int32, np.int64):
        raise TypeError(f"{name}: got {value.dtype}, expected int32 or int64")
    if value.ndim != 1:
        raise ValueError(f"{name}: got shape {value.shape}, expected one dimension")
    return value


def _host_offsets(name: str, value: Any, parts: str, end: int) -> np.ndarray:
    offsets = _host_array(name, value).astype(np.int64)
    if offsets.size == 0 or offsets[0] != 0:
        raise ValueError(f"{name}: got {offsets[:1].tolist()} first, expected 0")
    falls = np.diff(offsets) < 0
    if falls.any():
        where = int(np.argmax(falls))
        pair = offsets[where : where + 2].tolist()
        raise ValueError(f"{name}: got {pair} at position {where}, expected no decrease")
    if offsets[-1] != end:
        raise ValueError(f"{name}: got {offsets[-1]} last, expected {end}, the number of {parts}")
    return cast(np.ndarray, offsets)


def _int32(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.int32))
