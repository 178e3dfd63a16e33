# SPDX-License-Identifier: Apache-2.0
"""`evaluate`: a recommender's HR@K and NDCG@K on samples, with what it cost."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .. import _files
from .._check import check_count
from .._version import __version__
from ..layout.catalogue import Catalogue
from ..layout.histories import Histories
from ..models import fingerprint
from ..ragged import Ragged
from ..recommend.recommendations import most_answers
from .cost import measured
from .journal import Journal
from .metrics import check_ranks, ranks
from .report import Report
from .samples import checked, identity, users_of

if TYPE_CHECKING:
    from ..recommend import Recommender

_Samples = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]  # flat, offsets, targets
JOURNAL, REPORT, TABLE = "batches.jsonl", "report.json", "report.txt"
_ENTRY = {
    "begin": int,
    "ranks": [int],
    "rows": int,
    "seconds": {str: float},
    "peak_memory": int,
    "memory_kind": str,
}


def evaluate(
    rec: Recommender,
    samples: tuple[Histories, ArrayLike],
    ks: Sequence[int] = (10, 20),
    method: str = "beam",
    *,
    batch_size: int = 16,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
    users: ArrayLike | None = None,
    name: str | None = None,
    **options: Any,
) -> Report:
    """Decodes max(ks) titles for each sample, once, and reads every K off them.

    A hit is an exact match of the title; items that share one are one answer (`Catalogue.answers`). The intervals draw
    users, each with all samples of theirs (`evaluation.intervals`).

    Args:
        rec: a `Recommender`.
        samples: histories and targets, as `Dataset.split` gives them.
        ks: the K of HR@K and NDCG@K.
        method: as `Recommender.recommend` takes it.
        batch_size: samples decoded at once.
        out: a folder that keeps each batch as soon as it is done (`batches.jsonl`), and at the end `report.json` and
            `report.txt`. A run that was killed goes on there, having lost the batch in flight, if model, prompts,
            samples and options are what they were (`evaluation.fingerprint`). One run at a time.
        progress: a bar, where stderr is a terminal.
        users: (S,) whose sample each is; None finds it for samples in the order of `Dataset.split`
            (`evaluation.samples.users_of`).
        name: for the report; None takes the method and the packer's policy.
        **options: passed on to `Recommender.recommend`.

    Returns:
        `Report`: the metrics with their intervals; rows, seconds by part and peak memory; how many titles items share.

    Raises:
        TypeError: ids that are not integers.
        ValueError: no samples, an empty history, an unknown item, a K out of range; an `out` with the results of
            another model, other prompts, samples or options, with a damaged journal, or in use by another run.
        OSError: a file in `out` cannot be written.
    """
    catalogue = rec.packer.catalogue
    _check(ks, len(np.unique(catalogue.answers)), batch_size)
    flat, offsets, targets = checked(*samples)
    wanted = catalogue.answers[catalogue.index(targets)]
    owners = users_of(flat, offsets, targets) if users is None else np.asarray(users)
    if owners.shape != targets.shape:
        raise ValueError(f"users: expected shape {targets.shape}, got {owners.shape}")
    decode = _Decode(rec, max(ks), method, options)
    read = {}
    with ExitStack() as stack:
        stack.enter_context(rec.engine())
        journal = None
        if out is not None:
            header = decode.header((flat, offsets, targets))
            read = {"weights_read": header["weights_read"]}  # what the journal knows the model by
            journal = stack.enter_context(Journal(Path(out) / JOURNAL, header, _ENTRY))
        entries = _batches(decode, flat, offsets, wanted, batch_size, journal, progress)

        shared = _shared(catalogue)
        report = Report(
            name=f"{method}, {rec.packer.policy!r}" if name is None else name,
            ks=tuple(ks),
            ranks=[rank for entry in entries for rank in entry["ranks"]],
            users=owners.tolist(),
            identity=identity(flat, offsets, targets),
            shared_titles=len(shared),
            shared_targets=int(np.isin(wanted, shared).sum()),
            rows=sum(entry["rows"] for entry in entries) / len(targets),
            seconds=_mean_seconds(entries, len(targets)),
            peak_memory=max(entry["peak_memory"] for entry in entries),
            memory_kind=entries[-1]["memory_kind"],
            settings={**decode.settings, "batch_size": batch_size, **decode.machine(), **read},
        )
        if out is not None:
            report.save(Path(out) / REPORT)
            _files.write(Path(out) / TABLE, f"{report}\n")
    return report


def _check(ks: Sequence[int], titles: int, batch_size: int) -> None:
    for k in ks:
        if check_count("ks", k, minimum=1) > most_answers(titles):
            raise ValueError(f"ks: expected at most {most_answers(titles)}, got {k}; there are {titles} titles")
    if not len(ks):
        raise ValueError("ks: got none, expected at least one K")
    check_count("batch_size", batch_size, minimum=1)


class _Decode:
    """One batch of histories -> ranks, and what they cost."""

    def __init__(self, rec: Recommender, k: int, method: str, options: dict[str, Any]) -> None:
        self._rec, self._k, self._options = rec, k, {"method": method, **options}
        self.settings = {
            "k": k,
            **{option: fingerprint.plain(value) for option, value in self._options.items()},
            "policy": repr(rec.packer.policy),
            "max_items": rec.packer.max_items,
        }

    def header(self, samples: _Samples) -> dict[str, Any]:
        """What a journal is of."""
        return {
            **{name: value for name, value in self.settings.items() if name not in ("policy", "max_items")},
            **fingerprint.of_model(self._rec.model),
            **fingerprint.of_packer(self._rec.packer),
            "samples": fingerprint.of_samples(*samples),
        }

    def machine(self) -> dict[str, Any]:
        """What the times are of."""
        weight = next(self._rec.model.parameters())
        on_gpu = weight.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(weight.device) if on_gpu else f"{platform.machine()} CPU",
            "threads": torch.get_num_threads(),
            "dtype": str(weight.dtype).removeprefix("torch."),
            "parameters": sum(parameter.numel() for parameter in self._rec.model.parameters()),
            "versions": {"patchrec_fast": __version__, "torch": torch.__version__},
        }

    def __call__(self, histories: Histories, wanted: NDArray[np.int64]) -> dict[str, Any]:
        found, cost = measured(self._rec, histories, k=self._k, batch_size=len(wanted), **self._options)
        known = found.items >= 0
        listed = np.full(found.items.shape, -1)
        catalogue = self._rec.packer.catalogue
        listed[known] = catalogue.answers[catalogue.index(found.items[known])]
        return {
            "ranks": ranks(listed, wanted).tolist(),
            **cost._asdict(),
        }


def _batches(
    decode: _Decode,
    flat: NDArray[np.int64],
    offsets: NDArray[np.int64],
    wanted: NDArray[np.int64],
    batch_size: int,
    journal: Journal | None,
    progress: bool,
) -> list[dict[str, Any]]:
    """The results of all batches; those that the journal has are taken from it."""
    from tqdm import tqdm

    entries = [] if journal is None else list(journal.entries)
    done = 0
    for line, entry in enumerate(entries, 2):
        count = len(entry["ranks"])
        try:
            if entry["begin"] != done or not 0 < count <= len(wanted) - done:
                raise ValueError(f"its {count} samples begin at {entry['begin']}, expected {done} of {len(wanted)}")
            check_ranks(entry["ranks"])
        except ValueError as error:
            path = None if journal is None else journal.path
            raise ValueError(
                f"{path}: line {line}: {error}; the file is damaged: remove the line and those after it"
            ) from error
        done += count
    with tqdm(total=len(wanted), initial=done, unit=" samples", disable=None if progress else True) as bar:
        while done < len(wanted):
            count = min(batch_size, len(wanted) - done)
            part = Ragged(flat, offsets).slice(done, done + count)
            entry = {"begin": done, **decode(part, wanted[done : done + count])}
            if journal is not None:
                journal.append(entry)
            entries.append(entry)
            done += count
            bar.update(count)
    return entries


def _shared(catalogue: Catalogue) -> NDArray[np.int64]:
    """The answers that more than one item has."""
    return np.flatnonzero(np.bincount(catalogue.answers) > 1)


def _mean_seconds(entries: list[dict[str, Any]], samples: int) -> dict[str, float]:
    total: Counter[str] = Counter()
    for entry in entries:
        total.update(entry["seconds"])
    return {part: seconds / samples for part, seconds in total.items()}
