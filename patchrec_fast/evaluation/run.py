# SPDX-License-Identifier: Apache-2.0
"""`evaluate`: a ranker's HR@K and NDCG@K on samples, with what they cost."""

from __future__ import annotations

import inspect
import os
import platform
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .. import _files
from .._check import check_count
from .._version import __version__
from ..layout.catalogue import Catalogue
from ..layout.histories import Histories, checked
from ..models import fingerprint
from ..recommend.ranker import Ranked, Ranker
from ..recommend.recommendations import most_answers
from .cost import measured
from .journal import Journal
from .metrics import MISS, check_ranks, ranks
from .report import Report
from .samples import identity, users_of

By = Literal["recommend", "rank"]
_Samples = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]  # flat, offsets, targets
JOURNAL, REPORT, TABLE = "batches.jsonl", "report.json", "report.txt"
_ENTRY = {
    "begin": int,
    "ranks": [int],
    "rows": (int, type(None)),
    "seconds": {str: float},
    "peak_memory": int,
    "memory_kind": str,
}


def evaluate(
    ranker: Ranker,
    samples: tuple[Histories, ArrayLike],
    ks: Sequence[int] = (10, 20),
    *,
    by: By = "recommend",
    catalogue: Catalogue | None = None,
    batch_size: int = 16,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
    users: ArrayLike | None = None,
    name: str | None = None,
    **options: Any,
) -> Report:
    """Asks for max(ks) items for each sample, once, and reads every K off them.

    A hit is an exact match of the title; items that share one are one answer (`Catalogue.answers`). The intervals draw
    users, each with all samples of theirs (`evaluation.intervals`).

    Args:
        ranker: a `Recommender`, or any other `Ranker`.
        samples: histories and targets, as `Dataset.split` gives them.
        ks: the K of HR@K and NDCG@K.
        by: "recommend" looks for the target in the ranker's list, "rank" asks for its rank among all titles.
        catalogue: whose items that share a title are one answer; None takes the ranker's own `catalogue`, and where it
            has none each item is an answer.
        batch_size: samples a call.
        out: a folder that keeps each batch as soon as it is done (`batches.jsonl`), and at the end `report.json` and
            `report.txt`. A run that was killed goes on there, having lost the batch in flight, if ranker, samples and
            options are what they were (`Ranker`'s `fingerprint`). One run at a time.
        progress: a bar, where stderr is a terminal.
        users: (S,) whose sample each is; None finds it for samples in the order of `Dataset.split`
            (`evaluation.samples.users_of`).
        name: for the report; None takes the ranker's class and the options.
        **options: passed on to the ranker's method, such as `method="exact"` to `Recommender.recommend`.

    Returns:
        `Report`: the metrics with their intervals; rows, seconds by part and peak memory; how many titles items share.

    Raises:
        TypeError: not a `Ranker`, or with `out` one without a fingerprint; ids that are not integers.
        ValueError: no samples, an empty history, an unknown item, a K out of range; answers or ranks of another shape;
            an `out` with the results of another ranker, other samples or options, with a damaged journal, or in use by
            another run.
        OSError: a file in `out` cannot be written.
    """
    if not isinstance(ranker, Ranker):
        raise TypeError(
            f"ranker: expected rank(histories, targets) and recommend(histories, k), got {type(ranker).__name__}"
        )
    if by not in get_args(By):
        raise ValueError(f"by must be {' or '.join(map(repr, get_args(By)))}, got {by!r}")
    answers = _Answers(getattr(ranker, "catalogue", None) if catalogue is None else catalogue)
    _check(ks, answers.titles, batch_size)
    flat, offsets, targets = checked(*samples)
    wanted = answers(targets)
    owners = users_of(flat, offsets, targets) if users is None else np.asarray(users)
    if owners.shape != targets.shape:
        raise ValueError(f"users: expected shape {targets.shape}, got {owners.shape}")
    ask = _Ask(ranker, by, max(ks), answers, options)
    read = {}
    with ExitStack() as stack:
        stack.enter_context(getattr(ranker, "engine", nullcontext)())
        journal = None
        if out is not None:
            header = ask.header((flat, offsets, targets))
            known = header["ranker"]
            read = {key: known[key] for key in ("weights_read",) if key in known}  # what the journal knows it by
            journal = stack.enter_context(Journal(Path(out) / JOURNAL, header, _ENTRY))
        entries = _batches(ask, (flat, offsets, targets), batch_size, journal, progress)

        rows = [entry["rows"] for entry in entries]
        words = [type(ranker).__name__, *(f"{option}={value}" for option, value in options.items())]
        report = Report(
            name=", ".join(words) if name is None else name,
            ks=tuple(ks),
            ranks=[rank for entry in entries for rank in entry["ranks"]],
            users=owners.tolist(),
            identity=identity(flat, offsets, targets),
            shared_titles=len(answers.shared),
            shared_targets=int(np.isin(wanted, answers.shared).sum()),
            rows=None if None in rows else sum(rows) / len(targets),
            seconds=_mean_seconds(entries, len(targets)),
            peak_memory=max(entry["peak_memory"] for entry in entries),
            memory_kind=entries[-1]["memory_kind"],
            settings={**ask.settings, "batch_size": batch_size, **ask.machine(), **read},
        )
        if out is not None:
            report.save(Path(out) / REPORT)
            _files.write(Path(out) / TABLE, f"{report}\n")
    return report


def _check(ks: Sequence[int], titles: int, batch_size: int) -> None:
    for k in ks:
        if check_count("ks", k, minimum=1) > most_answers(titles):
            known = f"; there are {titles} titles" if titles else ""
            raise ValueError(f"ks: expected at most {most_answers(titles)}, got {k}{known}")
    if not len(ks):
        raise ValueError("ks: got none, expected at least one K")
    check_count("batch_size", batch_size, minimum=1)


class _Answers:
    """Item ids -> numbers of their titles; without a catalogue, themselves.

    Attributes:
        titles: how many there are, as far as is known.
        shared: the answers that more than one item has.
    """

    def __init__(self, catalogue: Catalogue | None) -> None:
        self._catalogue = catalogue
        number = np.empty(0, np.int64) if catalogue is None else catalogue.answers
        self.titles, self.shared = len(np.unique(number)), np.flatnonzero(np.bincount(number) > 1)

    def __call__(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        return items if self._catalogue is None else self._catalogue.answers[self._catalogue.index(items)]

    def fingerprint(self) -> Any:
        known = self._catalogue
        return None if known is None else fingerprint.plain(np.stack([known.item_ids, known.answers]))


class _Ask:
    """One batch of samples -> the ranks of its targets, and what they cost."""

    def __init__(self, ranker: Ranker, by: By, k: int, answers: _Answers, options: dict[str, Any]) -> None:
        self._ranker, self._by, self._k, self._answers, self._options = ranker, by, k, answers, options
        self._sized = "batch_size" in inspect.signature(getattr(ranker, by)).parameters
        self._asked = {"k": k, "by": by, **{name: fingerprint.plain(value) for name, value in options.items()}}
        self.settings = {**(ranker.settings() if hasattr(ranker, "settings") else {}), **self._asked}

    def header(self, samples: _Samples) -> dict[str, Any]:
        """What a journal is of."""
        if not hasattr(self._ranker, "fingerprint"):
            raise TypeError(
                f"out: {type(self._ranker).__name__} has no fingerprint(), so nobody could tell whether a run that "
                "goes on there has the same answers; keep the results with report.save()"
            )
        return {
            "options": self._asked,
            "ranker": fingerprint.plain(self._ranker.fingerprint()),
            "answers": self._answers.fingerprint(),
            "samples": fingerprint.of_samples(*samples),
        }

    def machine(self) -> dict[str, Any]:
        """What the times are of."""
        device = getattr(self._ranker, "device", torch.device("cpu"))
        return {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU",
            "threads": torch.get_num_threads(),
            "versions": {"patchrec_fast": __version__, "torch": torch.__version__},
        }

    def __call__(self, histories: list[NDArray[np.int64]], targets: NDArray[np.int64]) -> dict[str, Any]:
        options = {**self._options, **({"batch_size": len(targets)} if self._sized else {})}
        given = targets if self._by == "rank" else self._k
        found, cost = measured(self._ranker, self._by, histories, given, **options)
        ranked = self._checked(found, targets.shape) if self._by == "rank" else self._find(found, targets)
        return {"ranks": ranked.tolist(), **cost._asdict()}

    def _find(self, found: Ranked, targets: NDArray[np.int64]) -> NDArray[np.int64]:
        items = self._checked(found.items, (len(targets), self._k))
        listed = np.full(items.shape, MISS)
        listed[items >= 0] = self._answers(items[items >= 0])
        return ranks(listed, self._answers(targets))

    def _checked(self, found: Any, shape: tuple[int, ...]) -> NDArray[np.int64]:
        what, array = f"ranker: {type(self._ranker).__name__}.{self._by} gave", np.asarray(found)
        if array.shape != shape or array.dtype.kind not in "iu":
            raise ValueError(f"{what} {array.dtype} of shape {array.shape}, expected integers of shape {shape}")
        if self._by == "rank":
            check_ranks(array)
        return array.astype(np.int64)


def _batches(
    ask: _Ask,
    samples: _Samples,
    batch_size: int,
    journal: Journal | None,
    progress: bool,
) -> list[dict[str, Any]]:
    """The results of all batches; those that the journal has are taken from it."""
    from tqdm import tqdm

    flat, offsets, targets = samples
    entries = [] if journal is None else list(journal.entries)
    done = 0
    for line, entry in enumerate(entries, 2):
        count = len(entry["ranks"])
        try:
            if entry["begin"] != done or not 0 < count <= len(targets) - done:
                raise ValueError(f"its {count} samples begin at {entry['begin']}, expected {done} of {len(targets)}")
            check_ranks(entry["ranks"])
        except ValueError as error:
            path = None if journal is None else journal.path
            raise ValueError(
                f"{path}: line {line}: {error}; the file is damaged: remove the line and those after it"
            ) from error
        done += count
    with tqdm(total=len(targets), initial=done, unit=" samples", disable=None if progress else True) as bar:
        while done < len(targets):
            count = min(batch_size, len(targets) - done)
            part = [flat[begin:end] for begin, end in pairwise(offsets[done : done + count + 1])]
            entry = {"begin": done, **ask(part, targets[done : done + count])}
            if journal is not None:
                journal.append(entry)
            entries.append(entry)
            done += count
            bar.update(count)
    return entries


def _mean_seconds(entries: list[dict[str, Any]], samples: int) -> dict[str, float]:
    total: Counter[str] = Counter()
    for entry in entries:
        total.update(entry["seconds"])
    return {part: seconds / samples for part, seconds in total.items()}
