# SPDX-License-Identifier: Apache-2.0
"""How titles are searched: options of `recommend` and `evaluate`."""

from __future__ import annotations

import argparse
from typing import Any

from .numbers import whole

METHODS = ("beam", "exact", "diverse")
NORMALIZE = {
    "vocab": "of the text",
    "catalogue": "among the titles' tokens",
    "children": "among the titles",
}
"""What a title's probability is, by how it is normalised."""


def add_arguments(parser: argparse.ArgumentParser, method: str, normalize: str) -> None:
    """The options; `method` and `normalize` are the defaults, the former in words where it depends on others."""
    add = parser.add_argument
    add("--method", choices=METHODS, help=f"how titles are searched (default: {method})")
    add(
        "--beams",
        type=whole(1),
        metavar="N",
        help="of beam, groups of diverse; at least K (default: K, and at least 20)",
    )
    add(
        "--normalize",
        choices=tuple(NORMALIZE),
        default=normalize,
        help="a token's share is of the whole vocabulary, of the tokens that titles use, or of those that may follow, "
        f"so that the probabilities of all titles add up to 1 (default: {normalize})",
    )
    add("--exclude-seen", action="store_true", help="recommend no title of the history")


def asked(options: argparse.Namespace, k: int, method: str) -> dict[str, Any]:
    """What `Recommender.recommend` is to be given for these options.

    Args:
        k: how many titles, or the most.
        method: where --method does not say.

    Raises:
        ValueError: beams for a search that has none, or too few.
    """
    from ..recommend.recommendations import default_beams

    method = options.method or method
    if options.beams is not None and method == "exact":
        raise ValueError(f"--beams: the exact search has none, got {options.beams}; choose --method beam")
    if options.beams is not None and options.beams < k:
        raise ValueError(f"--beams: expected at least the {k} titles of --k, got {options.beams}")
    found = {"method": method, "normalize": options.normalize, "exclude_seen": options.exclude_seen}
    return found if method == "exact" else {**found, "beams": options.beams or default_beams(k)}
