# SPDX-License-Identifier: Apache-2.0
"""What a packer makes and a model reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..ops.attention.segments import Segments
from ..ops.transfer import together

if TYPE_CHECKING:
    from ..ops.compress import Plan


@dataclass(frozen=True, eq=False, repr=False)
class PackedBatch:
    """B prompts without padding: one after another, or as a tree where they share rows (`Packer(share=True)`).

    T tokens form I items (means over tokens), and the items form R rows (means over items). A row
    is one input embedding of the language model; a row of plain text is one item of one token.

    Attributes:
        ids: (T,) int32 token ids.
        offsets: token_offsets (I + 1,) int32 and item_offsets (R + 1,) int32, as `compress` takes
            them.
        cu_seqlens: (B + 1,) int32, the rows of user b are `cu_seqlens[b]:cu_seqlens[b + 1]`; a ValueError where
            prompts share rows, which are no whole prompts there. `prompts` gives these, `segments` what is in the
            batch.
        max_seqlen: the most rows of a user; the same error, and `most_rows`.
        position_ids: (R,) int64, each row's place in its prompt, from 0.
        labels: (R,) int64, the row's own token where it is supervised and -100 elsewhere (not
            shifted: the loss shifts); None without targets.
        plan: what `Packer(..., plan=True)` prepared for the compress op, else None.
        absent: how many rows of the prompts, their first ones, are not in the batch (`layout.rows.without`): only who
            has kept their keys and values can read it.
        parent, visible: (S,) int32, the tree of `segments`; None where every prompt is a segment of its own.
        leaves: (B,) int64, the segment at whose end each prompt ends.
        supervised_rows, targets: (N,) int64, the rows whose logits are learnt, and what: for each token of each
            answer, in the order of the prompts, the row before it. One row may come several times, where
            several answers begin. None without targets.
        longest: the rows of the longest prompt where prompts share rows, else 0.
        levels: of the tree, where it is known on the host.
    """

    ids: Tensor
    offsets: tuple[Tensor, Tensor]
    cu_seqlens: Tensor
    max_seqlen: int
    position_ids: Tensor
    labels: Tensor | None = None
    plan: Plan | None = None
    absent: int = 0
    parent: Tensor | None = None
    visible: Tensor | None = None
    leaves: Tensor | None = None
    supervised_rows: Tensor | None = None
    targets: Tensor | None = None
    longest: int = 0
    levels: int | None = None

    def __len__(self) -> int:
        """The number of prompts."""
        return len(self._bounds) - 1 if self.parent is None or self.leaves is None else len(self.leaves)

    def __repr__(self) -> str:
        if self.parent is not None:
            return (
                f"PackedBatch({len(self)} prompts in {len(self.parent)} segments, {len(self.position_ids)} rows, "
                f"{len(self.ids)} tokens)"
            )
        absent = f" and {self.absent} absent" if self.absent else ""
        return f"PackedBatch({len(self)} prompts, {len(self.position_ids)} rows{absent}, {len(self.ids)} tokens)"

    @property
    def segments(self) -> Segments:
        """The runs of rows and who sees which: a tree, or a root for each prompt.

        Raises:
            ValueError: rows are absent.
        """
        if self.absent:
            raise ValueError(f"segments: {_absent(self)}")
        bounds, parent, visible = self._bounds, self.parent, self.visible
        if parent is None or visible is None:
            parent = torch.full_like(bounds[1:], -1)
            return Segments(bounds, parent, torch.zeros_like(parent), self.position_ids, levels=1)
        return Segments(bounds, parent, visible, self.position_ids, self.levels)

    @property
    def _bounds(self) -> Tensor:
        """(S + 1,) int32, where each segment's rows begin."""
        return cast(Tensor, vars(self)["cu_seqlens"])

    @property
    def user_offsets(self) -> Tensor:
        """(B + 1,) int32, where each user's rows begin in the batch, whole prompts or not; none in a tree."""
        if self.parent is not None:
            raise ValueError(f"user_offsets: {_shared(self)}")
        return self._bounds

    @property
    def most_rows(self) -> int:
        """The most rows of a segment: that a user has in the batch."""
        return cast(int, vars(self)["max_seqlen"])

    def prompts(self, rows: Tensor) -> list[Tensor]:
        """Each user's whole prompt, whichever rows they share in the batch.

        Args:
            rows: (R, ...) something of each row: embeddings that `compress` made, `position_ids`, labels.

        Returns:
            B tensors (rows of the prompt, ...). Differentiable; shared rows come with each user.

        Raises:
            ValueError: another number of rows; rows are absent.
        """
        if len(rows) != len(self.position_ids):
            raise ValueError(f"rows: got {len(rows)}, expected the batch's {len(self.position_ids)}")
        parts = list(rows.split(self._bounds.diff().tolist()))
        if self.parent is not None and self.visible is not None and self.leaves is not None:
            return _through(parts, self.parent.tolist(), self.visible.tolist(), self.leaves.tolist())
        if self.absent:
            raise ValueError(f"prompts: {_absent(self)}")
        return parts

    def model_inputs(self) -> dict[str, Any]:
        """The keyword arguments of a model that `patchrec_fast.attach` prepared.

        Tensors, lists of tensors and integers, so that trainers and Accelerate can move them. On a
        batch in host memory nothing waits for a GPU; on one already moved, finding the supervised
        rows does, so call this before moving where that matters.

        Returns:
            position_ids: (1, R).
            ids, token_offsets, item_offsets, and plan (a list) where there is one: for `compress`.
            max_id: the largest token id, where it is known without asking a device.
            longest: the rows of the longest prompt, where they are known so and are more than `max_length_q`.
            cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k: segments, by transformers'
                names for them.
            use_cache: False; a cache would see all users as one sequence.
            labels: (1, R), where there are targets. A user's first row has none: no row of theirs
                is before it.
            supervised_rows: (N,) int64, the rows whose successor is supervised.
            absent: where rows are; a model refuses the batch unless a cache has kept them.
            segments: where prompts share rows, parent (S,), visible (S,) and position_ids (R,). `cu_seq_lens_q` and
                `_k` then bound the segments' own rows, and `longest` and `levels` are there.
            supervised_labels, distinct_rows: where an answer begins a segment, so that it is not the row before it in
                the batch that learns it: (1, N) the targets of `supervised_rows`, and these rows once each.
        """
        inputs: dict[str, Any] = {
            "position_ids": self.position_ids.unsqueeze(0),  # first: Trainer reads the batch size, 1, off it
            "ids": self.ids,
            "token_offsets": self.offsets[0],
            "item_offsets": self.offsets[1],
            "cu_seq_lens_q": self._bounds,
            "cu_seq_lens_k": self._bounds,
            "max_length_q": self.most_rows,
            "max_length_k": self.most_rows,
            "use_cache": False,
        }
        max_id = None if self.plan is None else self.plan.max_id
        if max_id is None and self.ids.device.type == "cpu" and len(self.ids):
            max_id = int(self.ids.max())
        if max_id is not None:
            inputs["max_id"] = max_id
        if self.plan is not None:
            inputs["plan"] = self.plan.tensors()
        if self.absent:
            inputs["absent"] = self.absent
        if self.parent is not None:
            inputs |= self._tree_inputs()
        elif self.labels is not None:
            labels = self.labels.masked_fill(self.position_ids == 0, -100)
            inputs["labels"] = labels.unsqueeze(0)
            inputs["supervised_rows"] = supervised_rows(labels)
        return inputs

    def _tree_inputs(self) -> dict[str, Any]:
        """The model inputs of prompts that share rows."""
        inputs: dict[str, Any] = {
            "segments": [self.parent, self.visible, self.position_ids],
            "longest": self.longest,
            "levels": self.levels,
        }
        rows, targets, labels = self.supervised_rows, self.targets, self.labels
        if rows is not None and targets is not None and labels is not None:
            inputs |= {"labels": labels.unsqueeze(0), "supervised_rows": rows}
            behind = (labels != -100).nonzero().squeeze(1) - 1
            if not torch.equal(rows.sort().values, behind):
                inputs |= {"supervised_labels": targets.unsqueeze(0), "distinct_rows": rows.unique()}
        return inputs

    def with_targets(self, rows: Tensor, before: Tensor) -> PackedBatch:
        """A copy that learns rows of text.

        Args:
            rows: (N,) int64, whose tokens are learnt; one may come several times.
            before: (N,) int64, the row before each in its prompt.
        """
        targets = self.ids[self.offsets[0][self.offsets[1][rows]]].long()
        labels = torch.full_like(self.position_ids, -100)
        labels[rows] = targets
        whole = {"cu_seqlens": self._bounds, "max_seqlen": self.most_rows}
        return replace(self, labels=labels, supervised_rows=before, targets=targets, **cast(Any, whole))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedBatch:
        """A copy on `device`: from host memory to a GPU in one copy, for which the host does not wait."""
        parts: list[Tensor] = []

        def listed(part: Tensor) -> Tensor:
            parts.append(part)
            return part

        self._map(listed)
        moved = iter(together(parts, device, non_blocking))
        return self._map(lambda part: next(moved))

    def pin_memory(self) -> PackedBatch:
        """A copy in page-locked memory, as `DataLoader(pin_memory=True)` makes it.

        Raises:
            RuntimeError: torch finds no accelerator.
        """
        return self._map(lambda part: part.pin_memory())

    def _map(self, move: Callable[[Tensor], Tensor]) -> PackedBatch:
        """A copy of moved tensors, each moved once and always in the same order."""
        names = "labels", "parent", "visible", "leaves", "supervised_rows", "targets"
        rest = ((name, getattr(self, name)) for name in names)
        return replace(
            self,
            ids=move(self.ids),
            offsets=(move(self.offsets[0]), move(self.offsets[1])),
            cu_seqlens=move(self._bounds),
            max_seqlen=self.most_rows,
            position_ids=move(self.position_ids),
            plan=None if self.plan is None else self.plan.map(move),
            **{name: cast(Any, None if part is None else move(part)) for name, part in rest},
        )


def _through(parts: list[Tensor], parent: list[int], visible: list[int], leaves: list[int]) -> list[Tensor]:
    """For each leaf, what it sees through the tree and itself; `parts` are the segments' rows."""
    made = []
    for leaf in leaves:
        seen, s = [parts[leaf]], leaf
        while parent[s] >= 0:
            seen.append(parts[parent[s]][: visible[s]])
            s = parent[s]
        made.append(torch.cat(seen[::-1]))
    return made


def _absent(batch: PackedBatch) -> str:
    return f"{batch.absent} rows of the batch's prompts are not in it; only who has kept them reads it"


def _shared(batch: PackedBatch) -> str:
    return (
        f"the batch's {len(batch)} prompts share rows, so these are no whole prompts one after another: "
        "batch.prompts(rows) gives these, batch.segments the tree, or pack with share=False"
    )


class _Whole:
    """A field of whole prompts: an error where users share rows, which the batch has once."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, batch: PackedBatch, owner: type) -> Any:
        if batch.parent is not None:
            raise ValueError(f"{self._name}: {_shared(batch)}")
        if batch.absent:
            raise ValueError(f"{self._name}: {_absent(batch)}")
        return vars(batch)[self._name]

    def __set__(self, batch: PackedBatch, value: Any) -> None:
        vars(batch)[self._name] = value


# Of the finished class: before, they would be the fields' defaults.
PackedBatch.cu_seqlens = _Whole("cu_seqlens")  # type: ignore[assignment]
PackedBatch.max_seqlen = _Whole("max_seqlen")  # type: ignore[assignment]


def supervised_rows(labels: Tensor) -> Tensor:
    """(N,) int64: the rows whose successor has a label in `labels` (R,), not shifted; -100 is none."""
    return (labels[1:] != -100).nonzero().squeeze(1)
