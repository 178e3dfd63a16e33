# SPDX-License-Identifier: Apache-2.0
"""Imports point one way: those for types only, and those inside functions, too."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"patchrec_fast": ROOT / "patchrec_fast", "patchrec_kernels": ROOT / "kernels" / "patchrec_kernels"}

# From the bottom. A part imports itself and what lies below, never another of its own line.
ORDER = (
    ("_private", "patchrec_kernels"),  # _private: the top-level modules with a leading underscore
    ("ragged",),
    ("data", "ops"),
    ("layout", "testing"),
    ("hf",),
    ("models",),
    ("train", "recommend"),
    ("baselines",),  # they are what `recommend.ranker` says
    ("evaluation", "profile"),
    ("report", "study", "serve", "info"),
    ("patchrec_fast",),  # the package itself, with its public names
    ("cli",),
)
RANK = {part: rank for rank, line in enumerate(ORDER) for part in line}
# Operators know nothing of one another: what they share lies beside them.
OPERATORS = ("compress", "attention", "cross_entropy")
RENAMED = {"evaluate": "evaluation", "layout.csr": "ragged"}

# (who, whom) of what is still to be turned round. It only ever gets shorter.
ALLOWED = {}


def short(module: str) -> str:
    """Without `patchrec_fast.`, under the name that the module is to have."""
    name = module.removeprefix("patchrec_fast").removeprefix(".")
    for old, new in RENAMED.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name


def part_of(module: str) -> str:
    """The part of ORDER that a module belongs to."""
    first = short(module).split(".")[0] or "patchrec_fast"
    return "_private" if first.startswith("_") else first


def operator_of(module: str) -> str | None:
    names = module.split(".")
    return names[2] if names[:2] == ["patchrec_fast", "ops"] and len(names) > 2 and names[2] in OPERATORS else None


def exists(module: str) -> bool:
    package, *names = module.split(".")
    place = PACKAGES[package].joinpath(*names)
    return place.is_dir() or place.with_suffix(".py").is_file()


def imported(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, module) of each module of PACKAGES that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: len(module.split(".")) + is_package - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            inside = base.split(".")[0] in PACKAGES
            found = [f"{base}.{name.name}" if inside and exists(f"{base}.{name.name}") else base for name in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in found if name.split(".")[0] in PACKAGES)


def breaches(source: str, module: str, is_package: bool = False) -> list[tuple[int, str]]:
    """(line, module) of the imports that do not point down."""
    part, operator = part_of(module), operator_of(module)
    wrong = []
    for line, other in imported(source, module, is_package):
        down = part_of(other) == part or RANK[part_of(other)] < RANK[part]
        if not down or (operator and operator_of(other) not in (operator, None)):
            wrong.append((line, other))
    return wrong


def files() -> Iterator[tuple[Path, str, bool]]:
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            names = [package, *path.relative_to(folder).with_suffix("").parts]
            is_package = names[-1] == "__init__"
            yield path, ".".join(names[:-1] if is_package else names), is_package


def test_imports_point_down():
    found: dict[tuple[str, str], str] = {}
    for path, module, is_package in files():
        for line, other in breaches(path.read_text(), module, is_package):
            where = f"{path.relative_to(ROOT)}:{line}"
            found[short(module), short(other)] = f"{where}: {part_of(module)} imports {other}"
    wrong = [text for pair, text in found.items() if pair not in ALLOWED]
    assert not wrong, "imports against the order:\n" + "\n".join(wrong)
    assert not ALLOWED - found.keys(), "they point down now; take them off ALLOWED"


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("ops.memory", "from ..layout.batch import PackedBatch", "layout.batch"),
        ("ops.memory", "from .. import layout", "layout"),
        ("ops.memory", "import torch, patchrec_fast.hf.attach", "hf.attach"),
        ("ops.memory", "from patchrec_fast.hf import attach", "hf.attach"),
        ("ops.memory", "if TYPE_CHECKING:\n    from ..layout import Packer", "layout"),
        ("ops.memory", "def f():\n    class C:\n        from ..train import run", "train.run"),
        ("ops.memory", "from .. import __version__", ""),
        ("ops.attention.tree", "from ..compress.plan import Plan", "ops.compress.plan"),
        ("hf.attach", "from .. import models", "models"),
        ("train.run", "from ..recommend import Recommender", "recommend"),
        ("data.folder", "from ..ops import memory", "ops.memory"),
        ("_files", "from .data import folder", "data.folder"),
        ("ragged", "from .layout import packing", "layout.packing"),
        ("report.page", "from .. import info", "info"),
        ("evaluate.run", "from ..report import page", "report.page"),
    ],
)
def test_what_points_up_is_found(module, source, expected):
    found = breaches(source, f"patchrec_fast.{module}")
    assert [short(other) for _, other in found] == [expected]
    assert found[0][0] == source.count("\n") + 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cli.main", "from .. import __version__, hf\nimport torch"),
        ("evaluate.run", "from .metrics import hits\nfrom ..recommend import trie"),
        ("ops.compress.cpu", "from .. import native\nfrom .validate import check_values"),
        ("ops.compress.triton", "from patchrec_kernels import compress"),
        ("layout.packing", "from ..ragged import Ragged\nfrom ..ops.compress import make_plan"),
        ("data.folder", "from .._files import write"),
    ],
)
def test_what_points_down_is_let_be(module, source):
    assert breaches(source, f"patchrec_fast.{module}") == []


def test_every_part_has_a_place():
    parts = {part_of(module) for _, module, _ in files()}
    assert parts <= RANK.keys(), f"no place in ORDER: {', '.join(sorted(parts - RANK.keys()))}"
