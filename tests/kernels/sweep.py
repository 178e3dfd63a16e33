# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.kernels.sweep [--record]`: compiles every kernel for every architecture. No GPU needed.

A line for each binary; the exit status is 1 where something does not hold. `--record` puts them in place of the same
architecture's in benchmarks/results/binaries.csv, of which `python -m benchmarks.page` makes a table of docs/gpu.md.
The tests compile a part: all of them are some 900.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import triton

from benchmarks import checkout, results
from benchmarks.occupancy import MULTIPROCESSORS, TARGETS, blocks
from benchmarks.results import Row
from tests.kernels import codegen, codegen_log_sum_exp, codegen_tree
from tests.kernels.codegen import Case, Facts

RECORD = "binaries"


def binaries(arch: str, match: str = "") -> Iterator[tuple[Case, Facts, list[str]]]:
    """Each case whose name has `match` in it, compiled, and what does not hold."""
    target = TARGETS[arch]
    for case in codegen.shipped(target):
        if match in case.name:
            found = codegen.facts(case, target)
            yield case, found, codegen.breaches(case, target, found)
    for case in codegen_tree.shipped(arch):
        if match in case.name:
            found = codegen.facts(case, target)
            yield case, found, codegen_tree.breaches(case, arch, found)
    for case in codegen_log_sum_exp.shipped():
        if match in case.name:
            found = codegen.facts(case, target)
            yield case, found, codegen_log_sum_exp.breaches(case, arch, found)


def row(arch: str, case: Case, found: Facts) -> Row:
    """A record. `spilled_bytes` and `registers` are a thread's; `blocks` live on a multiprocessor at once."""
    kernel, dtype, *about = case.name.split(" ", 2)
    return {
        "commit": checkout.commit(),
        "triton": triton.__version__,
        "arch": arch,
        "kernel": kernel,
        "dtype": dtype,
        "d": case.constants.get("D", ""),
        "case": about[0],
        "warps": case.options["num_warps"],
        "registers": found.registers,
        "shared_bytes": found.shared_bytes,
        "spilled_bytes": found.spilled_bytes,
        "blocks": blocks(MULTIPROCESSORS[arch], case.options["num_warps"], found.registers, found.shared_bytes),
        "products": found.products,
        "wide_loads": sum(n for width, n in found.loads.items() if width >= 16) + found.copies,
    }


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.kernels.sweep", description=__doc__)
    parser.add_argument("--arch", default=",".join(TARGETS), help="of %(default)s")
    parser.add_argument("--match", default="", metavar="TEXT", help="only cases with it in their names")
    parser.add_argument("--record", action="store_true", help="write the record; needs a committed tree")
    options = parser.parse_args()
    wanted = options.arch.split(",")
    if unknown := set(wanted) - TARGETS.keys():
        parser.error(f"--arch: expected some of {', '.join(TARGETS)}, got {sorted(unknown)}")
    if options.record and options.match:
        parser.error("--record: a record has every binary of its architectures; leave out --match")
    if options.record and not checkout.may_record("tests.kernels.sweep"):
        return 2
    total = failed = 0
    for arch in wanted:
        rows, before = [], failed
        for case, found, wrong in binaries(arch, options.match):
            made = row(arch, case, found)
            rows.append(made)
            failed += bool(wrong)
            shown = {name: made[name] for name in ("warps", "registers", "shared_bytes", "blocks", "products")}
            told = ", ".join(f"{name} {value}" for name, value in shown.items())
            print(f"{arch:7s} {case.name:56s} {told}  {'; '.join(wrong) or 'ok'}", flush=True)
        total += len(rows)
        if options.record and failed == before:
            others = [kept for kept in results.read(RECORD) if kept["arch"] != arch]
            order = [*TARGETS]
            results.replace(RECORD, sorted([*others, *rows], key=lambda kept: order.index(str(kept["arch"]))))
    print(f"triton {triton.__version__}: {total} binaries, {failed} with a breach")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
