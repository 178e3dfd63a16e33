# SPDX-License-Identifier: Apache-2.0
"""Micro-batches as a map-style dataset, so that a stock trainer needs no sampler of its own.

Element i is micro-batch i, packed: a pure function of i and of constants. The trainer reads one element a batch, in
order, and Accelerate deals element i to process i % world_size. So the order, the random patches and their rising
probability depend on i only, and come out alike under gradient accumulation, data loader workers, prefetching,
several processes and resuming, which skips the first elements without making them.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from .._check import check_count
from ..data import Samples
from ..layout import Assignment, PackedBatch, Packer, Policy, Text
from ..layout.history import History
from ..layout.titles import pack_titles
from ..ragged import Ragged, to_offsets
from .balance import balanced, fill, split_by_count
from .by_user import Passes
from .stages import Stage

_SAMPLES_AT_ONCE = 4096  # bounds memory; about 2 million tokens
_EPOCHS = 10_000  # the most that further steps may take
_ORDER, _PATCHES = 0, 1  # which stream of random numbers


class MicroBatch(NamedTuple):
    """What goes into one forward pass."""

    number: int
    samples: NDArray[np.int64]  # (n,) places in `Samples`
    step: int  # of the optimizer, from 0
    progress: float  # step / all steps
    seed: tuple[int, int, int]  # of its random patches


class MicroBatches(Dataset[dict[str, Any]]):
    """The micro-batches of all processes and epochs, in the order of training.

    Each optimizer step has world_size * accumulation micro-batches of nearly equal rows, and elements
    `(step * accumulation + a) * world_size + r` are those of process r. Steps, and what is drawn at random, depend
    on world_size * accumulation only: one process that accumulates twice trains as two processes do.

    Each sample comes once an epoch. Where the samples of an epoch cannot be dealt (one sample fills a micro-batch,
    and their number is no multiple of world_size * accumulation), those left over, fewer than that, are left out:
    other ones each epoch, as each has its own order.

    Attributes:
        optimizer_steps: of the whole training.
        samples, packer, stage, accumulation, world_size, seed, evaluation: as given.
        left_out: how many samples are left out, all epochs together.
    """

    def __init__(
        self,
        samples: Samples | Passes,
        packer: Packer,
        stage: Stage,
        *,
        sequences: int | None = None,
        rows: int | None = None,
        accumulation: int = 1,
        world_size: int = 1,
        epochs: int = 1,
        steps: int | None = None,
        seed: int = 0,
        evaluation: bool = False,
    ) -> None:
        """Plan all batches; every sample is packed once for it.

        Args:
            samples: what is learnt: prompts with a target each, or passes (`patchrec_fast.train.passes`), each of
                consecutive targets of one user, whose prompts a packer with `share` packs as one tree. What is said of
                a sample here is then said of a pass, and a random policy draws an item's patch once a pass.
            packer: its catalogue, prompt, max_items, step, plan and share are used; its policy is the stage's.
            stage: the policy of each step.
            sequences: targets of a micro-batch, at most, each with its prompt; with a twin, each makes two sequences.
                Steps have nearly equal numbers of them; in passes, they are filled one after another.
            rows: instead of `sequences`, the rows that a micro-batch may have, twins included; never exceeded. For
                a random policy, rows are counted as if all were text.
            accumulation: micro-batches of a process in one optimizer step.
            world_size: data-parallel processes.
            epochs: how often each sample is learnt.
            steps: so many optimizer steps in all, over which progress then runs: the first ones of the epochs, or
                further epochs follow.
            seed: of the order and of the random patches.
            evaluation: for validation: in order, by the stage's `final` policy, without twins.

        Raises:
            TypeError, ValueError: an argument out of range; both or neither of `sequences` and `rows`; fewer samples
                than world_size * accumulation; a sample of more than `rows` rows, a pass of more than `sequences`
                targets; a stage that learns titles in their history, and samples that are no passes; ids that the
                catalogue does not have.
        """
        by_rows, most = _limit(sequences, rows)
        for name, value in (("accumulation", accumulation), ("world_size", world_size), ("epochs", epochs)):
            check_count(name, value, minimum=1)
        check_count("seed", seed, minimum=0)
        if steps is not None:
            check_count("steps", steps, minimum=1)
        _check_samples(samples, stage, accumulation, world_size)
        self.samples = samples
        self.packer = packer
        self.stage = stage
        self.accumulation = accumulation
        self.world_size = world_size
        self.seed = seed
        self.evaluation = evaluation

        filled = by_rows or isinstance(samples, Passes)
        if isinstance(samples, Passes):
            packer.catalogue.index(samples.held(packer))  # unknown items are found now, not at some step
        weights, once = self._lengths() if by_rows or not filled else (self._counts(), 0)  # (S,)
        if filled and (largest := int(weights.max()) + once) > most:
            raise ValueError(self._too_large(by_rows, most, int(weights.argmax()), largest))
        parts = accumulation * world_size
        dealt: list[NDArray[np.int64]] = []  # by step, as the next
        counts: list[NDArray[np.int64]] = []
        epoch = 0
        while epoch < epochs or len(dealt) < (steps or 0):
            if epoch == epochs and steps is not None and steps > (at_most := len(dealt) * _EPOCHS // epochs):
                raise ValueError(f"steps: expected at most {at_most:,}, {_EPOCHS:,} epochs of them, got {steps:,}")
            order = self._epoch(epoch)
            own = weights[order]
            starts = fill(own, parts, most - once) if filled else split_by_count(len(order), parts, most)
            for first, last in pairwise(starts):
                within, counted = balanced(own[first:last], parts)
                dealt.append(order[first:last][within])
                counts.append(counted)
            epoch += 1
        self.left_out = epoch * len(weights) - sum(map(len, dealt))
        self.optimizer_steps = len(dealt) if steps is None else steps
        self._order = np.concatenate(dealt[:steps])
        self._starts = to_offsets(np.concatenate(counts[:steps]))  # (len(self) + 1,)
        self._targets = to_offsets(self._counts()[self._order])[self._starts[::parts]]  # (optimizer_steps + 1,)

    def __len__(self) -> int:
        """Micro-batches of all processes and epochs, a multiple of world_size * accumulation."""
        return len(self._starts) - 1

    def describe(self, number: int) -> MicroBatch:
        """What micro-batch `number` holds.

        Raises:
            IndexError: there is no such micro-batch.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"micro-batch {number} of {len(self)}")
        step = number // (self.accumulation * self.world_size)
        return MicroBatch(
            number=number,
            samples=self._order[self._starts[number] : self._starts[number + 1]],
            step=step,
            progress=step / self.optimizer_steps,
            seed=(self.seed, _PATCHES, number),
        )

    @property
    def number_of_targets(self) -> int:
        """Of an epoch."""
        return int(self._counts().sum())

    def targets(self, steps: int) -> int:
        """How many the first `steps` optimizer steps learn, in all processes."""
        return int(self._targets[steps])

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Micro-batch `number` as the model's keyword arguments, `PackedBatch.model_inputs`."""
        one = self.describe(number)
        policy = self.stage.final if self.evaluation else self.stage.policy(one.progress)
        samples = np.tile(one.samples, 2) if self._twin else one.samples
        packer = _with_policy(self.packer, _Twin(policy) if self._twin else policy)
        return self._packed(packer, samples, np.random.default_rng(one.seed)).model_inputs()

    @staticmethod
    def collate(elements: list[dict[str, Any]]) -> dict[str, Any]:
        """The collator, for training and validation alike (a trainer has one for both): the only element.

        Raises:
            ValueError: not exactly one; the trainer's batch size is not 1.
        """
        if len(elements) != 1:
            raise ValueError(f"expected 1 micro-batch a batch, got {len(elements)}; set per_device_train_batch_size=1")
        return elements[0]

    @property
    def _twin(self) -> bool:
        return self.stage.twin and not self.evaluation

    def _counts(self) -> NDArray[np.int64]:
        """(S,) the targets of each sample."""
        one = np.ones(count_samples(self.samples), np.int64)
        return self.samples.counts if isinstance(self.samples, Passes) else one

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        """(S,): the order of an epoch's samples."""
        count = count_samples(self.samples)
        return (
            np.arange(count)
            if self.evaluation
            else np.random.default_rng((self.seed, _ORDER, epoch)).permutation(count)
        )

    def _lengths(self) -> tuple[NDArray[np.int64], int]:
        """(S,) the rows of each sample, twin included, a bound where patches are random; those a batch adds once."""
        packer = _with_policy(self.packer, self.stage.final if self.evaluation else self.stage.longest)
        packer.plan = False
        once = len(packer.prompt.prefix) if packer.share else 0
        count = count_samples(self.samples)
        bounds = [*range(0, count, _SAMPLES_AT_ONCE), count]
        if isinstance(self.samples, Passes) and not self.stage.titles:
            apart = not self.evaluation and self.stage.draw is not None
            some = (self.samples.take(np.arange(*pair)) for pair in pairwise(bounds))
            lengths = np.concatenate([packer.count_rows(each.sequences, each.first, each.last, apart) for each in some])
        else:
            packer.share = False
            ends = [self._packed(packer, np.arange(*pair)).cu_seqlens.numpy() for pair in pairwise(bounds)]
            lengths = np.concatenate([np.diff(end) for end in ends]).astype(np.int64)
        return (lengths - once) * (2 if self._twin else 1), once

    def _packed(
        self, packer: Packer, places: NDArray[np.int64], seed: np.random.Generator | None = None
    ) -> PackedBatch:
        """The samples at `places` as one batch."""
        if isinstance(self.samples, Samples):
            return packer.pack(*take(self.samples, places), seed=seed)
        some = self.samples.take(places)
        if self.stage.titles:
            return pack_titles(packer, some.sequences, some.first, some.last)
        return packer.pack_targets(some.sequences, some.first, some.last, seed=seed)

    def _too_large(self, by_rows: bool, most: int, place: int, size: int) -> str:
        if not by_rows:
            return f"sequences: got {most}, but pass {place} has {size} targets; give more, or passes of fewer"
        passes = isinstance(self.samples, Passes)
        return (
            f"rows: got {most}, but {'pass' if passes else 'sample'} {place} alone has {size}"
            f"{', its twin included' if self._twin else ''}; give more, or "
            f"{'passes of fewer targets, or ' if passes else ''}fewer max_items to the packer"
        )


class _Twin:
    """A policy for a batch whose second half is the first again, as text."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def assign(self, histories: History, rng: np.random.Generator) -> Assignment:
        count = len(histories.lengths)
        first, second = histories.slice(0, count // 2), histories.slice(count // 2, count)
        one, other = self.policy.assign(first, rng), Text().assign(second, rng)
        return Assignment(np.concatenate([one.grain, other.grain]), np.concatenate([one.session, other.session]))


def _limit(sequences: int | None, rows: int | None) -> tuple[bool, int]:
    """Whether rows are limited, and how many rows or sequences there may be."""
    if rows is None and sequences is not None:
        check_count("sequences", sequences, minimum=1)
        return False, sequences
    if sequences is None and rows is not None:
        check_count("rows", rows, minimum=1)
        return True, rows
    raise ValueError(f"sequences, rows: expected one of them, got {sequences!r} and {rows!r}")


def _check_samples(samples: Samples | Passes, stage: Stage, accumulation: int, world_size: int) -> None:
    if not isinstance(samples, Samples | Passes):
        raise TypeError(f"samples: expected data.Samples or train.Passes, got {type(samples).__name__}")
    if stage.titles and not isinstance(samples, Passes):
        raise TypeError(f"samples: stage {stage.name!r} learns runs of titles, expected train.Passes, got Samples")
    count = count_samples(samples)
    if isinstance(samples, Samples) and (histories := len(samples.histories[1]) - 1) != count:
        raise ValueError(f"samples: got {histories} histories and {count} targets")
    if count < accumulation * world_size:
        raise ValueError(
            f"samples: got {count}, expected at least {accumulation * world_size}, one for each of the "
            f"{accumulation} * {world_size} micro-batches of a step (accumulation * world_size)"
        )


def count_samples(samples: Samples | Passes) -> int:
    """Prompts, or passes."""
    return len(samples.targets if isinstance(samples, Samples) else samples.user)


def _with_policy(packer: Packer, policy: Policy) -> Packer:
    """A packer that shares everything else."""
    other = copy.copy(packer)
    other.policy = policy
    return other


def take(samples: Samples, places: NDArray[np.int64]) -> Samples:
    """The samples at `places`."""
    flat, offsets = Ragged(*samples.histories).take(places)
    return Samples((flat, offsets.astype(np.int64, copy=False)), samples.targets[places])
