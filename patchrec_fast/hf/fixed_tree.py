# SPDX-License-Identifier: Apache-2.0
"""A tree that grows by the same number of rows in each call, in memory that stays where it is.

So a call is the same launches over the same addresses each time: nothing is asked of the host, and a CUDA graph can
hold it. What changes from call to call, lengths and paths among it, is in tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.attention.tree import tree_attention
from .cache import Known, PromptCache


class FixedTree(PromptCache):
    """The state of one batch of at most B users, each with `width` rows in a call.

    Attributes:
        step: (1,) int64, how many calls have read rows.
        path: (B * width, steps) int64, numbers of the rows on each row's path by depth, itself last, -1 behind. Call s
            reads the rows numbered from `s * B * width`.
        prompt_lengths: (B,) int64, 0 where there is no user.
    """

    def __init__(self, users: int, width: int, steps: int, rows: int, longest: int, device: torch.device) -> None:
        """Set up.

        Args:
            users: B.
            steps: at most so many calls.
            rows: the prompts have at most so many, all users together.
            longest: and so many each.
        """
        super().__init__([])
        self.users, self.width, self.steps, self.rows, self.longest = users, width, steps, rows, longest
        self.step = torch.zeros(1, dtype=torch.int64, device=device)
        self.path = torch.full((users * width, steps), -1, device=device)
        self.prompt_lengths = torch.zeros(users, dtype=torch.int64, device=device)
        self._cu_seqlens = torch.zeros(users + 1, dtype=torch.int32, device=device)
        self._cu_rows = torch.arange(users + 1, dtype=torch.int32, device=device) * width
        self._nth = torch.arange(users * width, device=device)
        self._depths = torch.arange(steps, device=device)
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}  # by layer: the prompts' keys and values (rows, Hk, D)
        self._trees: dict[int, Tensor] = {}  # (2, steps * B * width, Hk, D)

    @property
    def room(self) -> tuple[int, int, int]:
        """Users, rows of their prompts, rows of the longest."""
        return self.users, self.rows, self.longest

    def fits(self, lengths: list[int]) -> bool:
        """Whether prompts of these rows have room."""
        needed = len(lengths), sum(lengths), max(lengths)
        return all(size <= room for size, room in zip(needed, self.room, strict=True))

    def renew(self, lengths: list[int], known: list[Known]) -> None:
        """Empty, for the prompts of another batch; arguments as of `PromptCache`.

        Raises:
            ValueError: they have no room.
        """
        if not self.fits(lengths):
            raise ValueError(f"lengths: {len(lengths)} prompts of {sum(lengths)} rows have no room in {self!r}")
        super().__init__(lengths, known)
        padded = torch.tensor(lengths + [0] * (self.users - len(lengths)))
        self.prompt_lengths.copy_(padded)
        self._cu_seqlens[1:].copy_(padded.cumsum(0))
        self.step.zero_()
        self.path.fill_(-1)

    def __repr__(self) -> str:
        return f"FixedTree(users={self.users}, width={self.width}, rows={self.rows}, longest={self.longest})"

    def keep(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """As `PromptCache.keep`; what is kept lies where the last batch's lay."""
        whole = super().keep(layer, key, value)
        key, value = self._prompts[layer]
        if layer not in self._kept:
            self._kept[layer] = key.new_zeros(self.rows, *key.shape[1:]), value.new_zeros(self.rows, *value.shape[1:])
        keys, values = self._kept[layer]
        self._prompts[layer] = keys[: len(key)].copy_(key), values[: len(value)].copy_(value)
        return whole

    def open(self) -> None:
        """The next call reads the rows of this step: they are put on their own paths."""
        here = self._depths == self.step
        self.path.copy_(torch.where(here, (self.step * len(self._nth) + self._nth).unsqueeze(1), self.path))

    def close(self) -> None:
        """The call is over."""
        self.step += 1

    def _attend(
        self,
        layer: int,
        query: Tensor,  # (1, Hq, n, D), n = B * width
        key: Tensor,  # (1, Hk, n, D)
        value: Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:  # (1, n, Hq, D)
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (n, H, D)
        if layer not in self._trees:
            self._trees[layer] = k.new_zeros(2, self.steps * len(q), *k.shape[1:])
        store = self._trees[layer]
        slots = self.step * len(q) + self._nth
        store[0].index_copy_(0, slots, k)
        store[1].index_copy_(0, slots, v)
        out = tree_attention(
            q,
            *self._kept[layer],
            self._cu_seqlens,
            store[0],
            store[1],
            self.path,
            self._cu_rows,
            max_rows=self.width,
            max_seqlen=self.longest,
            scale=scale,
            window=window,
            softcap=softcap,
        )
        return out.unsqueeze(0)
