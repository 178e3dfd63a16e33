# SPDX-License-Identifier: Apache-2.0
"""Keys and values of packed prompts, and of a tree of tokens that grows behind each prompt.

A row of a tree sees its own user's prompt, the rows on its path from the root, and itself. The prompt is computed
once and shared: its keys are neither repeated for the branches nor reordered when branches die. So the attention of a
row is two parts, prompt and path, each with its log-sum-exp, and the parts are merged by those (as in
FlashAttention's split over keys; Hydragen, arXiv 2402.05099, and Cascade inference do it with a shared prefix).
Rows that a prompt begins with and that were read before, by another prompt or at the user's last visit
(`patchrec_fast.hf.kv_cache`), are not read again: their keys and values are put before those of the rows that are.

A model takes part through the attention implementation alone: `tree=TreeCache(...)` among its keyword arguments
reaches `patchrec_fast.hf.attention.attend` in each layer. A packed call leaves its keys and values here, and a call
after `begin` appends and attends. transformers' own cache is not used.
"""

from abc import ABC, abstractmethod
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.attention.tree import tree_attention
from ..ops.backends import why_not
from .attention import packed_attention
from .kv_cache import Layers

_PIECE = 512  # rows of a chain whose attention is computed at once
_GATHERED = 1 << 24  # numbers of keys on paths at once: 64 MiB of float32
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

Part = tuple[Tensor, Tensor]
"""What a set of keys gives a row: the mean of values (n, Hk, G, D) float32, and the log-sum-exp (n, Hk, G)."""


class Rows(NamedTuple):
    """n rows of the trees, read in one call of the model."""

    user: Tensor  # (n,) int64, rising
    depth: Tensor  # (n,) int64, tokens after the prompt, its own included
    path: Tensor  # (n, A) int64, numbers of the rows on the path by depth, itself last, -1 behind
    counts: list[int]  # (B,) rows of each user


class Chain(NamedTuple):
    """A row of the trees and those that follow it, each the only one behind the one before."""

    user: int
    above: Tensor  # (A,) int64, numbers of the rows on the path above the first, by depth
    rows: int


class Known(NamedTuple):
    """The rows that a prompt begins with and that a call does not have."""

    rows: int
    layers: Layers | None  # has them, or more; None: the first prompt of the call, which has all of its own


class PromptCache(ABC):
    """Keys and values of the prompts of one batch, all layers.

    Attributes:
        lengths: (B,) rows of each prompt.
    """

    def __init__(self, lengths: list[int], known: list[Known] | None = None) -> None:
        """Set up.

        Args:
            lengths: (B,) rows of each prompt.
            known: (B,) how many of them, the first, the packed call does not have, and who has them; None where it has
                all.
        """
        self.lengths = lengths
        self._known = [Known(0, None)] * len(lengths) if known is None else known
        self._prompts: dict[int, tuple[Tensor, Tensor]] = {}  # by layer: keys and values (R, Hk, D)

    def keep(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Takes a layer's keys and values of the packed call, (R, Hk, D) and (R, Hk, Dv); gives those of the whole
        prompts."""
        widths = key.shape[-1], value.shape[-1]
        key, value = of_one_width(key, value)
        if any(known.rows for known in self._known):
            key, value = self._whole(layer, 0, key), self._whole(layer, 1, value)
        self._prompts[layer] = key, value
        return (key, value) if widths[0] == widths[1] else (key[..., : widths[0]], value[..., : widths[1]])

    def attend(
        self,
        layer: int,
        query: Tensor,  # (1, Hq, n, D)
        key: Tensor,  # (1, Hk, n, D)
        value: Tensor,  # (1, Hk, n, Dv)
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:  # (1, n, Hq, Dv)
        """Appends the rows' keys and values to a layer, and gives the rows' attention."""
        width = value.shape[-1]
        query, key, value = of_one_width(query, key, value)
        out = self._attend(layer, query, key, value, scale, window, softcap)
        return out if out.shape[-1] == width else out[..., :width]

    @abstractmethod
    def _attend(
        self,
        layer: int,
        query: Tensor,  # (1, Hq, n, D)
        key: Tensor,  # (1, Hk, n, D)
        value: Tensor,  # (1, Hk, n, D)
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:  # (1, n, Hq, D)
        """The same, where queries, keys and values are of one width."""

    def _whole(self, layer: int, which: int, rows: Tensor) -> Tensor:
        """The keys or values of whole prompts, of those of the call's rows."""
        read = rows.split([length - known.rows for length, known in zip(self.lengths, self._known, strict=True)])
        parts: list[Tensor] = []
        for known, own in zip(self._known, read, strict=True):
            if known.layers is not None:
                parts.append(known.layers[layer][which][: known.rows])
            elif known.rows:
                parts.append(read[0][: known.rows])
            parts.append(own)
        return torch.cat(parts)

    def of(self, user: int, rows: int | None = None) -> Layers:
        """Keys and values of a prompt, or of its first rows; a copy, so that it keeps no more than that."""
        start = sum(self.lengths[:user])
        part = slice(start, start + (self.lengths[user] if rows is None else rows))
        return {layer: (key[part].clone(), value[part].clone()) for layer, (key, value) in self._prompts.items()}


class TreeCache(PromptCache):
    """The state of one batch, all layers: its prompts, and a tree behind each.

    Attributes:
        count: the number that the next row gets; the trees' roots, the ends of the prompts, are 0 to B - 1.
    """

    def __init__(self, lengths: list[int], known: list[Known] | None = None) -> None:
        """Set up, as `PromptCache`."""
        super().__init__(lengths, known)
        self.count = len(lengths)
        self._padded: dict[int, tuple[Tensor, Tensor]] = {}  # the same, (B, Hk, S, D), where a kernel needs that
        self._trees: dict[int, Tensor] = {}  # (2, capacity, Hk, D)
        self._rows: Rows | list[Chain] | None = None
        self._cu_rows = self._cu_seqlens = torch.empty(0)  # of the rows and of the prompts, where a kernel needs them

    def begin(self, rows: Rows | list[Chain]) -> None:
        """The next call of the model reads these rows; they get the numbers from `count` on."""
        self._rows = rows
        if isinstance(rows, Rows) and _kernel_serves(rows.user.device):
            offsets = [[0, *accumulate(counts)] for counts in (rows.counts, self.lengths)]
            self._cu_rows, self._cu_seqlens = torch.tensor(offsets, dtype=torch.int32).to(rows.user.device)

    def end(self) -> None:
        """The call is over."""
        assert self._rows is not None
        self.count += len(self._rows.user) if isinstance(self._rows, Rows) else sum(each.rows for each in self._rows)
        self._rows = None

    def _attend(
        self,
        layer: int,
        query: Tensor,  # (1, Hq, n, D)
        key: Tensor,  # (1, Hk, n, D)
        value: Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:  # (1, n, Hq, D)
        rows = self._rows
        if rows is None or layer not in self._prompts:
            raise ValueError("a tree's rows come after its prompts: call the model on the packed batch, then begin()")
        keys, values = self._append(layer, key[0].transpose(0, 1), value[0].transpose(0, 1))
        if isinstance(rows, list):
            return self._on_chains(layer, query[0].transpose(0, 1), keys, values, rows, scale, window, softcap)
        if _kernel_serves(query.device):
            return tree_attention(
                query[0].transpose(0, 1),
                *self._prompts[layer],
                self._cu_seqlens,
                keys,
                values,
                rows.path,
                self._cu_rows,
                max_rows=max(rows.counts),
                max_seqlen=max(self.lengths),
                scale=scale,
                window=window,
                softcap=softcap,
            ).unsqueeze(0)
        q = query[0].transpose(0, 1).unflatten(1, (key.shape[1], -1))  # (n, Hk, G, D)
        near = _path_part(q, keys, values, rows, scale, window, softcap)
        if q.device.type == "cpu" and window is None and softcap is None and q.dtype == key.dtype:
            far = self._prompt_part_flash(layer, q, rows, scale)
        else:
            far = self._prompt_part(layer, q, rows, scale, window, softcap)
        return _merged(near, far).to(value.dtype).flatten(1, 2).unsqueeze(0)

    def _on_chains(
        self,
        layer: int,
        query: Tensor,  # (n, Hq, D)
        keys: Tensor,
        values: Tensor,
        chains: list[Chain],
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:  # (1, n, Hq, D)
        """A chain at a time, its prompt and path before it: the end of one causal sequence."""
        out, first = [], self.count
        for chain, q in zip(chains, query.split([chain.rows for chain in chains]), strict=True):
            own, prompt = slice(first, first + chain.rows), self._prompt_of(layer, chain.user)
            k, v = (torch.cat([x, y[chain.above], y[own]]) for x, y in zip(prompt, (keys, values), strict=True))
            for start, piece in zip(range(0, chain.rows, _PIECE), q.split(_PIECE), strict=True):
                seen, count = len(k) - chain.rows + start + len(piece), len(piece)
                bounds = torch.tensor([[0, count], [0, seen]], dtype=torch.int32).to(q.device)
                part = packed_attention(
                    piece,
                    k[:seen],
                    v[:seen],
                    bounds[0],
                    count,
                    scale=scale,
                    window=window,
                    softcap=softcap,
                    cu_seqlens_k=bounds[1],
                    max_seqlen_k=seen,
                )
                out.append(part)
            first += chain.rows
        return torch.cat(out).unsqueeze(0)

    def _prompt_of(self, layer: int, user: int) -> tuple[Tensor, Tensor]:
        """A user's keys and values, (S, Hk, D) each."""
        length = self.lengths[user]
        if layer in self._padded:
            keys, values = self._padded[layer]
            return keys[user, :, :length].transpose(0, 1), values[user, :, :length].transpose(0, 1)
        start = sum(self.lengths[:user])
        keys, values = self._prompts[layer]
        return keys[start : start + length], values[start : start + length]

    def _append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        store, needed = self._trees.get(layer), self.count + len(key)
        if store is None or store.shape[1] < needed:
            grown = key.new_zeros((2, max(needed, 2 * self.count), *key.shape[1:]))  # padding of paths reads row 0
            if store is not None:
                grown[:, : self.count] = store[:, : self.count]
            self._trees[layer] = store = grown
        store[0, self.count : needed], store[1, self.count : needed] = key, value
        return store[0], store[1]

    def _prompt_part_flash(self, layer: int, query: Tensor, rows: Rows, scale: float) -> Part:
        """torch's flash kernel on the CPU, a user at a time: the queries of one key head are one run of queries."""
        keys, values = self._prompts[layer]
        out = query.new_empty(query.shape)
        lse = query.new_empty(query.shape[:3], dtype=torch.float32)
        row = start = 0
        for count, length in zip(rows.counts, self.lengths, strict=True):
            if count:
                mine, groups = slice(row, row + count), query.shape[2]
                q = query[mine].permute(1, 0, 2, 3).flatten(1, 2).unsqueeze(0)  # (1, Hk, count * G, D)
                k, v = (x[start : start + length].transpose(0, 1).unsqueeze(0) for x in (keys, values))
                made, kept = _flash(q, k, v, 0.0, False, attn_mask=None, scale=scale)
                out[mine] = made[0].unflatten(1, (count, groups)).transpose(0, 1)
                lse[mine] = kept[0].unflatten(1, (count, groups)).transpose(0, 1)
            row, start = row + count, start + length
        return out.float(), lse

    def _prompt_part(
        self, layer: int, query: Tensor, rows: Rows, scale: float, window: int | None, softcap: float | None
    ) -> Part:
        """Any device, window and cap: users padded to the longest prompt and to the most rows."""
        keys, values = self._pad(layer)  # (B, Hk, S, D)
        users, most = len(self.lengths), max(rows.counts)
        counts = torch.tensor(rows.counts, device=query.device)
        rank = torch.arange(len(rows.user), device=query.device) - (counts.cumsum(0) - counts)[rows.user]
        q = query.new_zeros(users, most, *query.shape[1:])
        q[rows.user, rank] = query
        logits = torch.einsum("bnkgd,bksd->bnkgs", q, keys.to(q.dtype))[rows.user, rank]  # (n, Hk, G, S)
        length = torch.tensor(self.lengths, device=query.device)[rows.user]  # (n,)
        column = torch.arange(keys.shape[2], device=query.device)
        seen = column < length.unsqueeze(1)  # (n, S)
        if window is not None:
            seen &= (length + rows.depth - 1).unsqueeze(1) - column < window
        weights, lse = _softmax(logits, seen, scale, softcap)
        spread = weights.new_zeros(users, most, *weights.shape[1:])
        spread[rows.user, rank] = weights
        mean = torch.einsum("bnkgs,bksd->bnkgd", spread.to(values.dtype), values)[rows.user, rank]
        return mean.float(), lse

    def _pad(self, layer: int) -> tuple[Tensor, Tensor]:
        if layer not in self._padded:
            prompts = self._prompts[layer]
            padded = [torch.nn.utils.rnn.pad_sequence(x.split(self.lengths), batch_first=True) for x in prompts]
            self._padded[layer] = padded[0].transpose(1, 2), padded[1].transpose(1, 2)
            self._prompts[layer] = prompts[0][:0], prompts[1][:0]  # one copy is enough
        return self._padded[layer]


def of_one_width(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Columns of zeros to the narrower: queries and keys of them have the same products, and values more zeros."""
    widest = max(x.shape[-1] for x in tensors)
    if all(x.shape[-1] == widest for x in tensors):
        return tensors
    return tuple(torch.nn.functional.pad(x, (0, widest - x.shape[-1])) for x in tensors)


def _kernel_serves(device: torch.device) -> bool:
    """Whether the fused operator is the fastest there is: a GPU with Triton."""
    return device.type != "cpu" and why_not("triton", device.type) is None


def _path_part(
    query: Tensor, keys: Tensor, values: Tensor, rows: Rows, scale: float, window: int | None, softcap: float | None
) -> Part:
    """The rows on the path, itself included: few, so they are gathered, for some rows at a time."""
    path = rows.path  # (n, A)
    most = max(1, _GATHERED // max(1, path.shape[1] * keys[0].numel()))
    if len(path) > most:
        each = zip(query.split(most), rows.user.split(most), rows.depth.split(most), path.split(most), strict=True)
        parts = [
            _path_part(q, keys, values, Rows(user, depth, some, rows.counts), scale, window, softcap)
            for q, user, depth, some in each
        ]
        means, lses = zip(*parts, strict=True)
        return torch.cat(means), torch.cat(lses)
    at = path.clamp(min=0)
    logits = torch.einsum("nkgd,nakd->nkga", query, keys[at].to(query.dtype))  # (n, Hk, G, A)
    seen = path >= 0
    if window is not None:
        seen &= rows.depth.unsqueeze(1) - 1 - torch.arange(path.shape[1], device=path.device) < window
    weights, lse = _softmax(logits, seen, scale, softcap)
    return torch.einsum("nkga,nakd->nkgd", weights, values[at].float()), lse


def _softmax(logits: Tensor, seen: Tensor, scale: float, softcap: float | None) -> Part:
    """Weights (n, Hk, G, S) and their log-sum-exp (n, Hk, G), float32; zeros and -inf where nothing is seen."""
    logits = logits.float() * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits.masked_fill(~seen[:, None, None], -torch.inf)
    lse = logits.logsumexp(-1)
    return (logits - lse.clamp(min=torch.finfo(lse.dtype).min).unsqueeze(-1)).exp(), lse


def _merged(near: Part, far: Part) -> Tensor:
    """The mean of both parts' values, (n, Hk, G, D) float32. A row always sees itself, so `near` is finite."""
    share = torch.sigmoid(far[1] - near[1]).unsqueeze(-1)
    return torch.lerp(near[0], far[0], share)
