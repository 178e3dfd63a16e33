# SPDX-License-Identifier: Apache-2.0
"""Which items of a history stay text, become a patch, share a session patch, or are left out.

A policy is any object with an `assign` method (see `Policy`); docs/policies.md has a table of the ones here.
"""

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .._check import check_count, check_number
from .._options import Anchor
from .histories import _INT64_MAX, whole_steps
from .history import History


class Grain(IntEnum):
    """What becomes of one item of a history."""

    TEXT = 0
    """its title, token by token"""
    ITEM = 1
    """one row: the mean of its title's token embeddings (item patch, eq. 3)"""
    SESSION = 2
    """part of one row: the mean of the item means of a run of items (session patch, eq. 4)"""
    DROPPED = 3
    """nothing at all"""


class Assignment(NamedTuple):
    """The decision for every item, users one after another, each user's items oldest first.

    `session` is read only where `grain` is SESSION: kept items of one user that stand next to each
    other and have equal numbers share one session patch.
    """

    grain: NDArray[np.uint8]  # (N,) of Grain
    session: NDArray[np.int64]  # (N,)


@runtime_checkable
class Policy(Protocol):
    """The interface of a policy: one pure function of the histories and of the random generator."""

    def assign(self, histories: History, rng: np.random.Generator) -> Assignment:
        """Decide for a batch.

        Args:
            histories: their lengths, and what is known of their items.
            rng: the only source of randomness, best through `histories.draw`; a deterministic policy leaves it alone.

        Returns:
            Assignment of N = len(histories) items.
        """
        ...


class _Shown:
    """Its repr leaves out what is at its default."""

    def __repr__(self) -> str:
        given: Any = fields(self)  # type: ignore[arg-type]
        told = [f"{f.name}={getattr(self, f.name)!r}" for f in given if getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(told)})"


@dataclass(frozen=True)
class Text:
    """Every title as text: the uncompressed prompt."""

    def assign(self, histories: History, rng: np.random.Generator) -> Assignment:
        return _without_sessions(np.zeros(len(histories), bool), Grain.TEXT)


@dataclass(frozen=True, repr=False)
class ItemPatches(_Shown):
    """PFT-I: text for the newest `keep` items, an item patch for every older one.

    With `step`, items become patches so many at a time: `keep` to `keep + step - 1` items are text, and what stands
    before them stays as it is while the history grows.
    """

    keep: int
    step: int = 1

    def __post_init__(self) -> None:
        check_count("ItemPatches.keep", self.keep, minimum=0)
        check_count("ItemPatches.step", self.step, minimum=1)

    def assign(self, histories: History, rng: np.random.Generator) -> Assignment:
        patches = whole_steps(histories.lengths - _small(self.keep), self.step)  # (B,)
        return _without_sessions(histories.older() < np.repeat(patches, histories.lengths), Grain.ITEM)


@dataclass(frozen=True, repr=False)
class SessionPatches(_Shown):
    """PFT-S: text for the newest `group` items, item patches for the `group` before, sessions for
    the rest.

    Sessions hold `group` items counted from the newest, so the oldest session of n items holds n
    mod group of them when that is not zero. n <= group is all text, n <= 2 * group has no session.

    With `anchor="oldest"` groups are counted from the oldest item instead, so that a session never changes: the last
    full group and the n mod group items after it are text, the full group before it item patches, each full group
    before that a session. n < 2 * group is all text, n < 3 * group has no session.
    """

    group: int
    anchor: Anchor = "newest"

    def __post_init__(self) -> None:
        check_count("SessionPatches.group", self.group, minimum=1)
        if self.anchor not in ("newest", "oldest"):
            raise ValueError(f"SessionPatches.anchor: expected 'newest' or 'oldest', got {self.anchor!r}")

    def assign(self, histories: History, rng: np.random.Generator) -> Assignment:
        group = _small(self.group)
        if self.anchor == "newest":
            session = histories.newer() // group  # (N,)
            back = session
        else:
            session = histories.older() // group
            back = np.repeat(histories.lengths // group - 1, histories.lengths) - session
        grain = back.clip(Grain.TEXT, Grain.SESSION).astype(np.uint8)  # groups back 0, 1, 2... -> TEXT, ITEM, SESSION
        return Assignment(grain, session)


@dataclass(frozen=True)
class RandomItemPatches:
    """Patch pre-training: each item becomes an item patch with probability `p`, independently.

    One uniform number is drawn for each item, in order; one, too, for an item that several prompts of
    `Packer.pack_targets` hold, so that they share it.
    """

    p: float

    def __post_init__(self) -> None:
        check_number("RandomItemPatches.p", self.p, 0, 1, "a probability")

    def assign(self, histories: History, rng: np.random.Generator) -> Assignment:
        return _without_sessions(histories.draw(rng) < self.p, Grain.ITEM)


@dataclass(frozen=True)
class Dropout:
    """The ablation: each item is left out with probability `p`, independently; the rest is text.

    Numbers are drawn as `RandomItemPatches` draws them.
    """

    p: float

    def __post_init__(self) -> None:
        check_number("Dropout.p", self.p, 0, 1, "a probability")

    def assign(self, histories: History, rng: np.random.Generator) -> Assignment:
        return _without_sessions(histories.draw(rng) < self.p, Grain.DROPPED)


def _small(count: int) -> int:
    """A number of items that int64 holds, whatever type it has: there are never more."""
    return min(int(count), _INT64_MAX)


def _without_sessions(chosen: NDArray[np.bool_], grain: Grain) -> Assignment:
    """`grain` where `chosen`, text elsewhere."""
    return Assignment(chosen * np.uint8(grain), np.zeros(len(chosen), np.int64))
