# SPDX-License-Identifier: Apache-2.0
"""What one user costs a recommender, by policy and by the length of the history.

Times do not depend on the weights, so a model of random weights serves.
"""

from __future__ import annotations

import csv
import errno
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import _files
from .._options import LONG
from ..data import Dataset
from ..layout import Catalogue, ItemPatches, Packer, Policy, Prompt, SessionPatches, Text
from ..recommend.engine import PARTS
from .cost import measured

if TYPE_CHECKING:
    from ..recommend import Recommender

LENGTHS = (50, 100, 200, 400, 800, 1435)
_FEWEST = 4  # lengths that show growth
_USERS = 10  # of data without long histories
_SIZE, _SMALL = 20, 5  # N and g of the paper for long histories and for short ones


@dataclass(frozen=True)
class Setting:
    """How histories are read: a name, a policy, and the newest items that are kept (None: all)."""

    name: str
    policy: Policy
    max_items: int | None = None


def settings_for(longest: int) -> tuple[Setting, ...]:
    """Figure 8's three, and text that is not cut, which the paper could not run.

    Args:
        longest: items of the longest history. A cut that keeps all of it is none, and what is then said twice is said
            once. Where there are too few items for a session of 20, N and g are 5.
    """
    size = _size(longest)
    wanted = (("text", Text(), 150), ("PFT-I", ItemPatches(size), 350), ("PFT-S", SessionPatches(size), None))
    made = []
    for name, policy, most in (*wanted, ("text", Text(), None)):
        kept = most if most is not None and most < longest else None
        made.append(Setting(f"{name}, {'all' if kept is None else kept} items", policy, kept))
    return tuple(dict.fromkeys(made))


def growth_for(longest: int) -> tuple[Setting, ...]:
    """The three policies of a growing history, with the same N and g."""
    size = _size(longest)
    return Setting("text", Text()), Setting("PFT-I", ItemPatches(size)), Setting("PFT-S", SessionPatches(size))


def lengths_for(longest: int) -> tuple[int, ...]:
    """Lengths of a growing history: those of `LENGTHS` that it has; of a short one its parts, down to an eighth."""
    there = tuple(length for length in LENGTHS if length <= longest)
    return there if len(there) >= _FEWEST else tuple(sorted({max(1, longest // part) for part in (8, 4, 2, 1)}))


def _size(longest: int) -> int:
    return _SIZE if longest > 2 * _SIZE else _SMALL


SETTINGS, GROWTH = settings_for(LENGTHS[-1]), growth_for(LENGTHS[-1])
"""Those of long histories."""


class Profile(NamedTuple):
    """Of some users: means of one user, and the highest peak."""

    setting: str
    users: int
    items: float  # that the prompt holds, in whatever grain
    rows: float  # the language model's tokens
    pack_ms: float
    prompt_ms: float
    decode_ms: float
    peak_mib: float
    memory: str  # which memory that is

    @property
    def total_ms(self) -> float:
        return self.pack_ms + self.prompt_ms + self.decode_ms


def long_histories(dataset: Dataset, more_than: int | None = None, limit: int | None = None) -> list[NDArray[np.int32]]:
    """The whole sequences of the users with more than so many interactions, longest first.

    Args:
        more_than: by default 500; of data without such users, the ten longest are taken.
        limit: only so many of them.

    Raises:
        ValueError: there are none.
    """
    lengths = np.diff(dataset.offsets)
    order = np.argsort(-lengths, kind="stable")
    long = lengths[order] > (LONG if more_than is None else more_than)
    order = order[:_USERS] if more_than is None and not long.any() else order[long]
    order = order[:limit]
    if not len(order):
        raise ValueError(f"more_than: no user has more than {more_than} interactions; the most are {lengths.max()}")
    return [dataset.items[dataset.offsets[user] : dataset.offsets[user + 1]] for user in order]


class Profiler:
    """One model, catalogue and prompt under many settings."""

    def __init__(self, model: Any, catalogue: Catalogue, prompt: Prompt, k: int = 20, method: str = "beam") -> None:
        """Set up.

        Args:
            model: a causal language model with enough embeddings for the prompt.
            k, method: as `Recommender.recommend` takes them.
        """
        self._model, self._catalogue, self._prompt = model, catalogue, prompt
        self._options: dict[str, Any] = {"k": k, "method": method}

    def compare(
        self, histories: Sequence[NDArray[np.int32]], settings: Sequence[Setting] = SETTINGS, batch_size: int = 1
    ) -> Iterator[Profile]:
        """Each setting on the same users, `batch_size` of them at once; a first call is not counted.

        Args:
            histories: the longest first: what the first call makes room for serves all.
        """
        for setting in settings:
            rec = self._recommender(setting)
            with rec.engine():
                measured(rec, "recommend", histories[:batch_size], batch_size=batch_size, **self._options)
                yield self._profile(rec, setting, histories, batch_size)

    def grow(
        self,
        history: NDArray[np.int32],
        lengths: Sequence[int] = LENGTHS,
        settings: Sequence[Setting] = GROWTH,
        repeats: int = 3,
    ) -> Iterator[Profile]:
        """Each setting on the newest items of one history, as many as each length says.

        Raises:
            ValueError: a length that the history has not.
        """
        if not 1 <= min(lengths) <= max(lengths) <= len(history):
            raise ValueError(f"lengths: expected 1 to {len(history)}, the items of the longest history, got {lengths}")
        for setting in settings:
            rec = self._recommender(setting)
            with rec.engine():
                measured(rec, "recommend", [history[-max(lengths) :]], batch_size=1, **self._options)
                for length in lengths:
                    yield self._profile(rec, setting, [history[-length:]] * repeats, 1)

    def trace(
        self, history: NDArray[np.int32], path: str | os.PathLike[str], settings: Sequence[Setting] = SETTINGS
    ) -> None:
        """A torch.profiler trace of one user under each setting, to be opened in Perfetto or chrome://tracing.

        Raises:
            OSError: names `path`: it was not written whole.
        """
        from torch.profiler import profile, record_function

        recs = [self._recommender(setting) for setting in settings]
        with ExitStack() as stack:
            for rec in recs:
                stack.enter_context(rec.engine())
                rec.recommend([history], **self._options)
            profiler = stack.enter_context(profile())
            for setting, rec in zip(settings, recs, strict=True):
                with record_function(setting.name):
                    rec.recommend([history], **self._options)
        with _files.replacing(path) as temporary:
            profiler.export_chrome_trace(str(temporary))  # of a full disk it says nothing, and leaves a file behind
            temporary.with_name(f"{temporary.name}.tmp").unlink(missing_ok=True)
            if not temporary.read_bytes().rstrip().endswith(b"}"):
                raise OSError(errno.EIO, "torch.profiler did not write it whole; the disk may be full")

    def _recommender(self, setting: Setting) -> Recommender:
        from ..recommend import Recommender

        return Recommender(self._model, Packer(self._catalogue, self._prompt, setting.policy, setting.max_items))

    def _profile(
        self, rec: Recommender, setting: Setting, histories: Sequence[NDArray[np.int32]], batch_size: int
    ) -> Profile:
        parts = [histories[begin : begin + batch_size] for begin in range(0, len(histories), batch_size)]
        found, costs = zip(
            *(measured(rec, "recommend", part, batch_size=batch_size, **self._options) for part in parts), strict=True
        )
        users = len(histories)
        kept = [min(len(history), setting.max_items or len(history)) for history in histories]
        pack, prompt, decode = (1000 * sum(cost.seconds[part] for cost in costs) / users for part in PARTS)
        return Profile(
            setting.name,
            users,
            sum(kept) / users,
            sum(each.rows for each in found) / users,
            pack,
            prompt,
            decode,
            max(cost.peak_memory for cost in costs) / 2**20,
            costs[0].memory_kind,
        )


def to_csv(profiles: Sequence[Profile]) -> str:
    """A header and a line each."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Profile._fields)
    writer.writerows([f"{value:.6g}" if isinstance(value, float) else value for value in row] for row in profiles)
    return text.getvalue()


def plot(profiles: Sequence[Profile], path: str | os.PathLike[str]) -> None:
    """Rows, time and peak memory over the items of the history, a line a setting; a PNG.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    drawn = (("rows", "rows of the prompt"), ("total_ms", "ms a user"), ("peak_mib", f"MiB {profiles[0].memory}"))
    grid = figure.subplots(1, len(drawn))
    for axes, (field, label) in zip(grid, drawn, strict=True):
        for setting in dict.fromkeys(profile.setting for profile in profiles):
            own = [profile for profile in profiles if profile.setting == setting]
            axes.plot([each.items for each in own], [getattr(each, field) for each in own], marker="o", label=setting)
        axes.set_xlabel("items of the history")
        axes.set_ylabel(label)
        axes.set_ylim(0, 1.05 * max(getattr(profile, field) for profile in profiles))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25, linewidth=0.6)
    grid[0].legend(frameon=False)
    with _files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
