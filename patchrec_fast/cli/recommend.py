# SPDX-License-Identifier: Apache-2.0
"""`patchrec-fast recommend`: the next titles for one history."""

import argparse
import difflib
import json
from collections.abc import Iterable, Mapping

from .._text import printable
from .evaluate import METHODS
from .models import add_model_arguments, open_recommender, plain, tell
from .numbers import whole

EXAMPLE = """  patchrec-fast recommend --model runs/pft-s --data path/to/ml-1m --history "Toy Story" "Heat" "Casino"
  patchrec-fast recommend --model runs/pft-s --data path/to/ml-1m --items 0 5 15 --k 5 --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    history = parser.add_mutually_exclusive_group(required=True)
    history.add_argument("--history", nargs="+", metavar="TITLE", help="titles, oldest first")
    history.add_argument("--items", nargs="+", type=whole(0), metavar="ID", help="item ids, oldest first")
    add = parser.add_argument
    add("--k", type=whole(1), default=20, help="how many titles (default: 20)")
    add("--method", default="beam", choices=METHODS, help="how titles are searched (default: beam)")
    add("--exclude-seen", action="store_true", help="recommend no title of the history")
    add("--json", action="store_true", help="print a line of JSON instead of a table")


def run(options: argparse.Namespace) -> int:
    import numpy as np

    rec, dataset = open_recommender(options)
    items = known(options.items, dataset.titles) if options.items else items_of(options.history, dataset.titles)
    tell(rec.packer.policy, rec.packer.max_items, rec.packer.step)
    found = rec.recommend([items], k=options.k, method=options.method, exclude_seen=options.exclude_seen)
    answers = [
        {"item": item, "title": dataset.titles[item], "probability": probability}
        for item, probability in zip(found.items[0].tolist(), np.exp(found.log_probs[0]).tolist(), strict=True)
        if item >= 0
    ]
    if options.json:
        print(json.dumps({"prompt": plain(rec.packer), "history": items, "recommendations": answers}))
        return 0
    print("after", ", ".join(printable(dataset.titles[item]) for item in items))
    for place, answer in enumerate(answers, 1):
        print(f"{place:3}  {answer['probability']:<9.3g}  {printable(answer['title'])}  ({answer['item']})")
    return 0


def known(items: list[int], titles: Mapping[int, str]) -> list[int]:
    """The same items.

    Raises:
        ValueError: one that the data do not have; the message names it.
    """
    if strangers := [item for item in dict.fromkeys(items) if item not in titles]:
        raise ValueError(f"--items: no item {', '.join(map(str, strangers[:5]))} among the {len(titles):,} of the data")
    return items


def items_of(wanted: Iterable[str], titles: Mapping[int, str]) -> list[int]:
    """The first item of each title: as it is written, else whatever the case.

    Raises:
        ValueError: no such title; the message names the nearest.
    """
    exact: dict[str, int] = {}
    folded: dict[str, int] = {}
    for item, title in titles.items():
        exact.setdefault(title, item)
        folded.setdefault(title.casefold(), item)
    items = []
    for text in wanted:
        found = exact.get(text, folded.get(text.casefold()))
        if found is None:
            near = difflib.get_close_matches(text.casefold(), folded, n=3)
            hint = "; did you mean " + " or ".join(repr(titles[folded[title]]) for title in near) if near else ""
            raise ValueError(f"--history: no title {text!r} in the data{hint}")
        items.append(found)
    return items
