# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.rows --data DIR --tokenizer DIR`: rows of the prompts of the paper's test splits

They go to results/rows.csv. Counts, no times: the same on every machine, so a record replaces the one before.
"""

import argparse
import sys

from patchrec_fast import ItemPatches, Packer, SessionPatches
from patchrec_fast.evaluation import measure_compression
from patchrec_fast.evaluation.profile import long_histories
from patchrec_fast.layout.histories import Histories

from . import checkout, results
from .results import Row
from .source import Source, load

ITEMS = 100
GROUPS = {"ml-1m": 5, "goodreads": 5, "ml-100k": 20}  # of PFT-S


def count(source: Source, name: str, histories: Histories, max_items: int | None) -> list[Row]:
    """A row a policy."""
    made: list[Row] = []
    for policy in (ItemPatches(5), SessionPatches(GROUPS[source.label])):
        found = measure_compression(Packer(source.catalogue, source.prompt, policy, max_items), histories)
        made.append(
            {
                "commit": checkout.commit(),
                "data": source.label,
                "histories": name,
                "max_items": max_items or "all",
                "policy": str(policy),
                "users": found.users,
                "text_rows": round(found.text_rows, 3),
                "rows": round(found.rows, 3),
                "ratio": round(found.prompt, 6),
                "paper_ratio": round(found.catalogue, 6),
            }
        )
    return made


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.rows", description=__doc__)
    parser.add_argument("--data", required=True, help="folder with ml-1m, goodreads and ml-100k")
    parser.add_argument("--tokenizer", required=True, help="folder of the Llama-3 tokenizer")
    options = parser.parse_args()
    if not checkout.may_record("benchmarks.rows"):
        return 2
    found: list[Row] = []
    for name in GROUPS:
        source = load(name, options.data, options.tokenizer)
        found += count(source, "test split", source.dataset.split("test")[0], ITEMS)
        if name == "ml-1m":
            found += count(source, "users of more than 500", long_histories(source.dataset), None)
    print(results.replace("rows", found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
