# SPDX-License-Identifier: Apache-2.0
"""Which items of a history stay text, become a patch, share a session patch, or are left out.

A policy is any object with an `assign` method (see `Policy`); the ones here are the table of
DESIGN, section "The rows of a prompt". They share one idea: an item's `age` is the number of newer
items of the same user.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..ragged import counting
from .histories import _INT64_MAX


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
    """The interface of a policy: one pure function of the lengths and of the random generator."""

    def assign(self, lengths: NDArray[np.int64], rng: np.random.Generator) -> Assignment:
        """Decide for a batch.

        Args:
            lengths: (B,) int64, the number of items of each user, all >= 1.
            rng: the only source of randomness; a deterministic policy leaves it alone.

        Returns:
            Assignment of N = lengths.sum() items.
        """
        ...


@dataclass(frozen=True)
class Text:
    """Every title as text: the uncompressed prompt."""

    def assign(self, lengths: NDArray[np.int64], rng: np.random.Generator) -> Assignment:
        return _without_sessions(np.zeros(int(lengths.sum()), bool), Grain.TEXT)


@dataclass(frozen=True)
class ItemPatches:
    """PFT-I: text for the newest `keep` items, an item patch for every older one."""

    keep: int

    def __post_init__(self) -> None:
        check_count("ItemPatches.keep", self.keep, minimum=0)

    def assign(self, lengths: NDArray[np.int64], rng: np.random.Generator) -> Assignment:
        return _without_sessions(_age(lengths) >= self.keep, Grain.ITEM)


@dataclass(frozen=True)
class SessionPatches:
    """PFT-S: text for the newest `group` items, item patches for the `group` before, sessions for
    the rest.

    Sessions hold `group` items counted from the newest, so the oldest session of n items holds n
    mod group of them when that is not zero. n <= group is all text, n <= 2 * group has no session.
    """

    group: int

    def __post_init__(self) -> None:
        check_count("SessionPatches.group", self.group, minimum=1)

    def assign(self, lengths: NDArray[np.int64], rng: np.random.Generator) -> Assignment:
        session = _age(lengths) // min(int(self.group), _INT64_MAX)  # (N,) 0 is the newest group
        grain = np.minimum(session, Grain.SESSION).astype(np.uint8)  # groups 0, 1, 2... -> TEXT, ITEM, SESSION
        return Assignment(grain, session)


@dataclass(frozen=True)
class RandomItemPatches:
    """Patch pre-training: each item becomes an item patch with probability `p`, independently.

    One uniform number is drawn for each item, in order.
    """

    p: float

    def __post_init__(self) -> None:
        check_number("RandomItemPatches.p", self.p, 0, 1, "a probability")

    def assign(self, lengths: NDArray[np.int64], rng: np.random.Generator) -> Assignment:
        return _without_sessions(rng.random(int(lengths.sum())) < self.p, Grain.ITEM)


@dataclass(frozen=True)
class Dropout:
    """The ablation: each item is left out with probability `p`, independently; the rest is text.

    One uniform number is drawn for each item, in order.
    """

    p: float

    def __post_init__(self) -> None:
        check_number("Dropout.p", self.p, 0, 1, "a probability")

    def assign(self, lengths: NDArray[np.int64], rng: np.random.Generator) -> Assignment:
        return _without_sessions(rng.random(int(lengths.sum())) < self.p, Grain.DROPPED)


def _age(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,): how many newer items the same user has; 0 for the newest."""
    return counting(lengths - 1, lengths, step=-1)


def _without_sessions(chosen: NDArray[np.bool_], grain: Grain) -> Assignment:
    """`grain` where `chosen`, text elsewhere."""
    return Assignment(chosen * np.uint8(grain), np.zeros(len(chosen), np.int64))


def check_count(name: str, value: object, minimum: int) -> int:
    """`value` as Python's int, which no sum overflows; an error names `name` where it is none or below `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected an int, got {value!r} ({type(value).__name__})")
    if value < minimum:
        raise ValueError(f"{name}: expected at least {minimum}, got {value}")
    return int(value)


def check_number(name: str, value: object, least: float, most: float, what: str = "a number") -> float:
    """`value` as Python's float; an error names `name` where it is none, NaN or outside `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name}: expected a number, got {value!r} ({type(value).__name__})")
    if not least <= value <= most:
        raise ValueError(f"{name}: expected {what} between {least:g} and {most:g}, got {value}")
    return float(value)
