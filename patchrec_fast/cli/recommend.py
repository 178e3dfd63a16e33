# SPDX-License-Identifier: Apache-2.0
"""`patchrec-fast recommend`: the next titles for one history, or for every user of the data."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._text import printable
from . import search
from .answers import write_answers
from .models import add_model_arguments, open_recommender, plain, tell
from .numbers import whole
from .titles import find_titles

if TYPE_CHECKING:
    from ..data import Dataset

EXAMPLE = """  patchrec-fast recommend --model runs/pft-s --data path/to/ml-1m --history "Toy Story (1995)" heat Casino
  patchrec-fast recommend --model runs/pft-s --data path/to/ml-1m --user 42 --exclude-seen --deny sold-out.txt
  patchrec-fast recommend --model runs/pft-s --data path/to/ml-1m --items 1 6 16 --k 5 --json
  patchrec-fast recommend --model runs/pft-s --data path/to/ml-1m --all-users --k 10 --out answers.csv"""
_NEWEST = 10  # titles of a history that are printed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    history = parser.add_mutually_exclusive_group(required=True)
    history.add_argument("--user", metavar="ID", help="a user of the data, by the data's own id: all of their history")
    history.add_argument("--items", nargs="+", metavar="ID", help="the data's own ids of items, oldest first")
    history.add_argument(
        "--history",
        nargs="+",
        metavar="TITLE",
        help="titles, oldest first; case, a year in parentheses and the place of an article do not matter, and a part "
        "of a title is enough where no other has it",
    )
    history.add_argument("--all-users", action="store_true", help="every user of the data, to the file of --out")
    add = parser.add_argument
    add("--out", metavar="FILE.csv", help="of --all-users: gets user, place, item, title and probability, in own ids")
    add("--k", type=whole(1), default=20, help="how many titles (default: 20)")
    search.add_arguments(parser, method="exact; beam where --beams is given, and for --all-users", normalize="children")
    add("--allow", metavar="FILE", help="recommend only these items: a file of own ids, one a line")
    add("--deny", metavar="FILE", help="recommend none of these items: a file of own ids, one a line")
    add("--json", action="store_true", help="print a line of JSON instead of a table")


def run(options: argparse.Namespace) -> int:
    import numpy as np

    one = options.beams is None and not options.all_users
    asked = search.asked(options, options.k, method="exact" if one else "beam")
    out = file_of(options)
    rec, dataset = open_recommender(options)
    items = [] if options.all_users else history_of(options, dataset)
    limits = limits_of(options, dataset)
    tell(rec.packer.policy, rec.packer.max_items, rec.packer.step)
    if out is not None:
        written = write_answers(out, rec, dataset, options.k, {**asked, **limits})
        result = {"file": str(out), "users": len(dataset), "rows": written}
        print(
            json.dumps(result) if options.json else f"{printable(str(out))}: {len(dataset):,} users, {written:,} rows"
        )
        return 0
    found = rec.recommend([items], options.k, **asked, **limits)
    answers = [
        {"item": dataset.item_ids.of(item), "title": dataset.titles[item], "probability": probability}
        for item, probability in zip(found.items[0].tolist(), np.exp(found.log_probs[0]).tolist(), strict=True)
        if item >= 0
    ]
    if options.json:
        user = (
            {} if options.user is None else {"user": dataset.user_ids.of(dataset.user_ids.find(options.user, "user"))}
        )
        history = {**user, "history": dataset.item_ids.of_all(items)}
        print(json.dumps({"prompt": plain(rec.packer), "search": asked, **history, "recommendations": answers}))
        return 0
    newest = ", ".join(printable(dataset.titles[item]) for item in items[-_NEWEST:])
    print("after", newest if len(items) <= _NEWEST else f"{len(items)} titles, the newest {newest}")
    print(f"     probability {search.NORMALIZE[options.normalize]}, title (id)")
    for place, answer in enumerate(answers, 1):
        shown = f"{printable(answer['title'])}  ({printable(str(answer['item']))})"
        print(f"{place:3}  {answer['probability']:<9.3g}  {shown}")
    return 0


def file_of(options: argparse.Namespace) -> Path | None:
    """Where the answers for all users go; None for one history.

    Raises:
        ValueError: one of --all-users and --out without the other, or a file that is not called .csv.
        OSError: a folder that is not there, or a folder in the file's place.
    """
    if options.all_users != (options.out is not None):
        raise ValueError("--all-users and --out: expected both or none")
    if options.out is None:
        return None
    out = Path(options.out)
    if out.suffix.lower() != ".csv":
        raise ValueError(f"--out: expected a name that ends in .csv, got {options.out!r}")
    if out.is_dir():
        raise IsADirectoryError(f"--out: {out} is a folder, expected a file")
    if not out.parent.is_dir():  # before all users are asked for
        raise FileNotFoundError(f"--out: {out.parent} is no folder")
    return out


def history_of(options: argparse.Namespace, dataset: Dataset) -> list[int]:
    """The numbers of the history's items, oldest first. What a title was taken for is said on stderr.

    Raises:
        ValueError: an id or a title that the data do not have, or that is several; the message names the flag.
    """
    if options.user is not None:
        row = _named("--user", dataset.user_ids.find, options.user, "user")
        items: list[int] = dataset.items[dataset.offsets[row] : dataset.offsets[row + 1]].tolist()
        return items
    if options.items is not None:
        return _named("--items", dataset.item_ids.find_all, options.items).tolist()
    found = find_titles(options.history, dataset.titles)
    for each in found:
        if each.text != each.title:
            print(f"--history: {printable(each.text)} is {printable(each.title)}", file=sys.stderr)
    return [each.item for each in found]


def limits_of(options: argparse.Namespace, dataset: Dataset) -> dict[str, Any]:
    """`allow` and `deny` of `Recommender.recommend`, those that were given.

    Raises:
        OSError: no such file.
        ValueError: an id that the data do not have, with its file and line; nothing left to recommend.
    """
    limits: dict[str, Any] = {
        flag: _listed(flag, Path(path), dataset) for flag in ("allow", "deny") if (path := getattr(options, flag))
    }
    if not set(limits.get("allow", dataset.titles)).difference(limits.get("deny", ())):
        given = ", ".join(f"--{flag}" for flag in limits)
        raise ValueError(f"{given}: none of the {len(dataset.titles):,} items of the data is left to recommend")
    return limits


def _listed(flag: str, path: Path, dataset: Dataset) -> list[int]:
    """The items of a file; blank lines are none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"--{flag}: {path} is not UTF-8 ({error.reason} at byte {error.start})") from error
    wanted = ((f"--{flag}: {path}, line {place}", line.strip()) for place, line in enumerate(lines, 1))
    return [_named(where, dataset.item_ids.find, text) for where, text in wanted if text]


def _named(where: str, find: Any, *arguments: Any) -> Any:
    """What `find` gives; its errors say where."""
    try:
        return find(*arguments)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
