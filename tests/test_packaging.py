# SPDX-License-Identifier: Apache-2.0
"""The wheel: what is in it, with a compiler and without."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def source(tmp_path):
    """A copy of what a clone holds."""
    made = ("build", "dist", "report")

    def ignored(folder, names):
        here = made if Path(folder) == ROOT else ()
        return [n for n in names if n in here or n.startswith((".", "__pycache__")) or n.endswith((".so", ".egg-info"))]

    return Path(shutil.copytree(ROOT, tmp_path / "source", ignore=ignored))


def build(source, **environment):
    """`pip wheel` without isolation: the one build requirement, setuptools, is among the test's own."""
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-v", "-w", "dist"]
    inherited = {k: v for k, v in os.environ.items() if k not in ("PATCHREC_FAST_REQUIRE_NATIVE", "CC", "CXX")}
    return subprocess.run(command, cwd=source, env=inherited | environment, capture_output=True, text=True, timeout=300)


NO_COMPILER = {"CC": "/nonexistent/cc", "CXX": "/nonexistent/c++"}


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("c++") is None, reason="needs a C++ compiler")
def test_wheel_with_a_compiler(source):
    done = build(source, PATCHREC_FAST_REQUIRE_NATIVE="1")
    assert done.returncode == 0, done.stderr
    (wheel,) = (source / "dist").glob("*.whl")
    assert "-py3-none-" in wheel.name  # no Python ABI: one wheel for every Python
    names = zipfile.ZipFile(wheel).namelist()
    assert "patchrec_fast/_native.so" in names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"patchrec_fast", "patchrec_kernels"}
    shipped = {name for name in names if name.endswith(".py")}
    tracked = {str(p.relative_to(ROOT)) for p in (ROOT / "patchrec_fast").rglob("*.py")}
    tracked |= {str(p.relative_to(ROOT / "kernels")) for p in (ROOT / "kernels").rglob("*.py")}
    assert shipped == tracked
    assert max(len(zipfile.ZipFile(wheel).read(name)) for name in names) < 1 << 20

    installed = source.parent / "site"
    zipfile.ZipFile(wheel).extractall(installed)
    code = "from patchrec_fast.ops import native; import patchrec_kernels; print(native.why_not(), native.__file__)"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=source.parent, env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert out.stdout.split() == ["None", str(installed / "patchrec_fast" / "ops" / "native.py")], out.stderr


def test_wheel_without_a_compiler(source):
    done = build(source, **NO_COMPILER)
    assert done.returncode == 0, done.stderr
    assert "native CPU kernels were NOT built" in done.stdout + done.stderr
    (wheel,) = (source / "dist").glob("*.whl")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]


def test_a_required_native_build_that_fails_is_an_error(source):
    done = build(source, PATCHREC_FAST_REQUIRE_NATIVE="1", **NO_COMPILER)
    assert done.returncode != 0
