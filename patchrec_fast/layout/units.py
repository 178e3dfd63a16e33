# SPDX-License-Identifier: Apache-2.0
"""A policy's decision read as units: what stands between two separators of a history."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..ragged import to_offsets
from .history import History
from .policies import Assignment, Grain, Policy

# NumPy takes several times longer to compare with a member of an Enum.
_TEXT, _SESSION, _DROPPED = int(Grain.TEXT), int(Grain.SESSION), int(Grain.DROPPED)


class Units(NamedTuple):
    """The M items that are not dropped, users one after another, oldest first.

    `kept` holds their places among all N items, (M,); it is `slice(None)` where none is dropped.
    """

    kept: NDArray[np.int64] | slice
    lengths: NDArray[np.int64]  # (B,) how many items each user keeps
    patched: NDArray[np.bool_]  # (M,) inside an item or session patch, not text
    opens: NDArray[np.bool_]  # (M,) the first item of its unit
    leads: NDArray[np.int64]  # the places of users' first items, one of each user that keeps any

    def separated(self, beside_patches: bool) -> NDArray[np.bool_]:
        """(M,): a separator is before it; `beside_patches` says whether there are any next to patches."""
        found = self.opens.copy()
        found[self.leads] = False
        if not beside_patches:
            found &= ~self.patched
            found[1:] &= ~self.patched[:-1]
        return found


def units(policy: Policy, histories: History, rng: np.random.Generator) -> Units:
    """Ask the policy, check its answer, and find the units.

    Args:
        policy: decides each item's grain and session.
        histories: what the policy sees.
        rng: passed to the policy.

    Raises:
        TypeError, ValueError: the policy's answer is not an Assignment of len(histories) items.
    """
    lengths = histories.lengths
    grain, session = _checked(policy, policy.assign(histories, rng), len(histories))
    dropped = grain == _DROPPED
    kept: NDArray[np.int64] | slice = slice(None)
    if dropped.any():
        kept = np.flatnonzero(~dropped)
        grain, session = grain[kept], session[kept]
        dropped_before = to_offsets(dropped)[to_offsets(lengths)]  # (B + 1,)
        lengths = lengths - np.diff(dropped_before)

    leads = to_offsets(lengths)[:-1][lengths > 0]
    opens = np.ones(len(grain), bool)
    in_session = grain == _SESSION
    if in_session.any():
        opens[1:] = ~in_session[1:] | ~in_session[:-1] | (session[1:] != session[:-1])
        opens[leads] = True
    return Units(kept, lengths, grain != _TEXT, opens, leads)


def _checked(policy: Policy, answer: Assignment, count: int) -> Assignment:
    grain, session = np.asarray(answer[0]), np.asarray(answer[1])
    for name, array in (("grain", grain), ("session", session)):
        if array.shape != (count,):
            raise ValueError(f"policy: {policy!r} gave {name} of shape {array.shape}, expected ({count},)")
        if array.dtype.kind not in "iu":
            raise TypeError(f"policy: {policy!r} gave {name} of dtype {array.dtype}, expected integers")
    least, most = int(grain.min()), int(grain.max())
    if least < _TEXT or most > _DROPPED:
        raise ValueError(f"policy: {policy!r} gave a grain outside {_TEXT}..{_DROPPED}: {least} to {most}")
    return Assignment(grain, session)
