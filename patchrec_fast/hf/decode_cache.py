# SPDX-License-Identifier: Apache-2.0
"""The keys and values from which a batch decodes: its prompts', and those of a tree of tokens behind each.

A row of a tree sees its own user's prompt, the rows on its path from the root, and itself. The prompt is computed once
and shared: its keys are neither repeated for the branches nor reordered when branches die (`tree_attention`). Rows that
a prompt begins with and that were read before, by another prompt or at the user's last visit, are not read again: their
keys and values are put before those of the rows that are.

A model takes part through the attention implementation alone: `kv_cache=` among its keyword arguments reaches
`patchrec_fast.hf.attention.attend` in each layer. A packed call leaves its keys and values here, and a call after
`begin` appends and attends. transformers' own caches, of one sequence a row, are not used.
"""

from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.attention.tree import tree_attention
from .attention import packed_attention
from .kv_cache import KeyValues, Pair


class Parent(NamedTuple):
    """What a prompt's rows in a call come behind: the first rows of a prompt that is held."""

    visible: int
    rows: KeyValues | None  # has them, or more; None: the first prompt of the call, which has no parent


class Rows(NamedTuple):
    """n rows of the trees, read in one call of the model; arguments of `tree_attention`."""

    path: Tensor  # (n, A) int64, numbers of the rows on the path by depth, itself last, -1 behind
    cu_rows: Tensor  # (B + 1,) int32, a user's are `cu_rows[b]:cu_rows[b + 1]`
    max_rows: int


class Chain(NamedTuple):
    """A row of the trees and those that follow it, each the only one behind the one before."""

    user: int
    above: Tensor  # (A,) int64, numbers of the rows on the path above the first, by depth
    rows: int


class DynamicCache:
    """Of one batch, in memory that grows.

    Attributes:
        lengths: (B,) rows of each prompt, on the host.
        max_seqlen: no prompt is longer.
        cu_seqlens: (B + 1,) int32, prompt b's rows are `cu_seqlens[b]:cu_seqlens[b + 1]`.
        count: the number that the next row gets; the trees' roots, the ends of the prompts, are 0 to B - 1.
    """

    def __init__(self, lengths: list[int], device: torch.device, parents: list[Parent] | None = None) -> None:
        """Set up.

        Args:
            lengths: (B,) rows of each prompt.
            parents: (B,) who has the first of them, which the packed call does not have; None where it has all.
        """
        self.lengths, self.count, self.max_seqlen = lengths, len(lengths), max(lengths, default=0)
        self.cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device)
        self._parents = [Parent(0, None)] * len(lengths) if parents is None else parents
        self._prompts, self._tree = KeyValues(), KeyValues()
        self._rows: Rows | list[Chain] | None = None

    def update(self, layer: int, key: Tensor, value: Tensor) -> Pair:
        """Takes a layer's keys and values of the packed call, (R, Hk, D) and (R, Hk, Dv); gives those of the whole
        prompts."""
        widths = key.shape[-1], value.shape[-1]
        key, value = of_one_width(key, value)
        if any(parent.visible for parent in self._parents):
            key, value = self._behind_parents(layer, 0, key), self._behind_parents(layer, 1, value)
        self._hold(layer, key, value)
        return (key, value) if widths[0] == widths[1] else (key[..., : widths[0]], value[..., : widths[1]])

    def prompt(self, user: int, rows: int | None = None) -> KeyValues:
        """A copy of a prompt, or of its first rows."""
        first = sum(self.lengths[:user])
        return self._prompts.copy(first, first + (self.lengths[user] if rows is None else rows))

    def begin(self, rows: Rows | list[Chain]) -> None:
        """The next call of the model reads these rows; in a cache that grows they get the numbers from `count` on."""
        self._rows = rows

    def end(self) -> None:
        """The call is over."""
        assert self._rows is not None
        self.count += len(self._rows.path) if isinstance(self._rows, Rows) else sum(each.rows for each in self._rows)
        self._rows = None

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
        rows = self._rows
        if rows is None or layer not in self._prompts.layers:
            raise ValueError("a tree's rows come after its prompts: call the model on the packed batch, then begin()")
        q, k, v = (x[0].transpose(0, 1) for x in of_one_width(query, key, value))  # (n, H, D)
        keys, values = self._append(layer, k, v)
        if isinstance(rows, Rows):
            out = tree_attention(
                q,
                *self._prompts.layers[layer],
                self.cu_seqlens,
                keys,
                values,
                rows.path,
                rows.cu_rows,
                max_rows=rows.max_rows,
                max_seqlen=self.max_seqlen,
                scale=scale,
                window=window,
                softcap=softcap,
            )
        else:
            out = self._on_chains(layer, q, keys, values, rows, scale, window, softcap)
        return out[..., : value.shape[-1]].unsqueeze(0)

    def _hold(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Keys and values of whole prompts, (R, Hk, D)."""
        self._prompts.layers[layer] = key, value

    def _append(self, layer: int, key: Tensor, value: Tensor) -> Pair:
        """Those of the rows that are read, (n, Hk, D), put in the tree; all of it."""
        needed = self.count + len(key)
        keys, values = self._tree.reserve(layer, needed, key, value)
        keys[self.count : needed], values[self.count : needed] = key, value
        return keys, values

    def _behind_parents(self, layer: int, which: int, rows: Tensor) -> Tensor:
        """The keys or values of whole prompts, of those of the call's rows."""
        read = rows.split([length - parent.visible for length, parent in zip(self.lengths, self._parents, strict=True)])
        parts: list[Tensor] = []
        for parent, own in zip(self._parents, read, strict=True):
            above = read[0] if parent.rows is None else parent.rows.layers[layer][which]
            parts += [above[: parent.visible], own]
        return torch.cat(parts)

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
    ) -> Tensor:  # (n, Hq, D)
        """A chain at a time, its prompt and path before it: the end of one causal sequence."""
        out, first = [], self.count
        for chain, q in zip(chains, query.split([chain.rows for chain in chains]), strict=True):
            start = sum(self.lengths[: chain.user])
            prompt, own = slice(start, start + self.lengths[chain.user]), slice(first, first + chain.rows)
            held = zip(self._prompts.layers[layer], (keys, values), strict=True)
            k, v = (torch.cat([whole[prompt], tree[chain.above], tree[own]]) for whole, tree in held)
            bounds = torch.tensor([[0, len(q)], [0, len(k)]], dtype=torch.int32).to(q.device)
            part = packed_attention(
                q,
                k,
                v,
                bounds[0],
                len(q),
                scale=scale,
                window=window,
                softcap=softcap,
                cu_seqlens_k=bounds[1],
                max_seqlen_k=len(k),
            )
            out.append(part)
            first += chain.rows
        return torch.cat(out)


class StaticCache(DynamicCache):
    """The same in memory that stays where it is, for one batch after another.

    A call of as many rows as the one before is the same launches over the same addresses: nothing is asked of the host,
    and a CUDA graph can hold it. What changes from call to call, lengths and paths among it, is in tensors. The rows'
    numbers are the caller's, who writes them into the paths; there are no chains.
    """

    def __init__(self, users: int, rows: int, max_seqlen: int, tree_rows: int, device: torch.device) -> None:
        """Set up, empty.

        Args:
            users: at most so many in a batch.
            rows: their prompts have at most so many together.
            max_seqlen: and so many each.
            tree_rows: the rows of the trees are numbered below that.
        """
        super().__init__([0] * users, device)
        self.capacity, self.max_seqlen, self._tree_rows = (users, rows, max_seqlen), max_seqlen, tree_rows

    def fits(self, lengths: list[int]) -> bool:
        """Whether prompts of these rows have room."""
        needed = len(lengths), sum(lengths), max(lengths)
        return all(size <= room for size, room in zip(needed, self.capacity, strict=True))

    def reset(self, lengths: list[int], parents: list[Parent]) -> None:
        """Empty, for the prompts of another batch; arguments as of `DynamicCache`.

        Raises:
            ValueError: they have no room.
        """
        if not self.fits(lengths):
            raise ValueError(
                f"lengths: {len(lengths)} prompts of {sum(lengths)} rows, up to {max(lengths)} each, have no room: "
                f"expected at most {self.capacity}"
            )
        self.lengths, self._parents = lengths, parents
        padded = lengths + [0] * (self.capacity[0] - len(lengths))
        self.cu_seqlens.copy_(torch.tensor([0, *accumulate(padded)]))

    def begin(self, rows: Rows | list[Chain]) -> None:
        """The next call of the model reads these rows, each of its own number."""
        assert isinstance(rows, Rows)
        super().begin(rows)
        self._number = rows.path.amax(1)  # (n,): rows are read in order, so none on a path has a greater one

    def _hold(self, layer: int, key: Tensor, value: Tensor) -> None:
        keys, values = self._prompts.reserve(layer, self.capacity[1], key, value)
        keys[: len(key)], values[: len(value)] = key, value

    def _append(self, layer: int, key: Tensor, value: Tensor) -> Pair:
        keys, values = self._tree.reserve(layer, self._tree_rows, key, value)
        return keys.index_copy_(0, self._number, key), values.index_copy_(0, self._number, value)


def of_one_width(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Columns of zeros to the narrower: queries and keys of them have the same products, and values more zeros."""
    widest = max(x.shape[-1] for x in tensors)
    if all(x.shape[-1] == widest for x in tensors):
        return tensors
    return tuple(torch.nn.functional.pad(x, (0, widest - x.shape[-1])) for x in tensors)
