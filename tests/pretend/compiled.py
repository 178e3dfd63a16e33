# SPDX-License-Identifier: Apache-2.0
"""`pretend.cpp`, compiled when it is first asked for and kept by what it was compiled from.

torch is not imported here: what `pretend.cpp` registers must be there before.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

SOURCE, HEADER = (Path(__file__).with_name(name) for name in ("pretend.cpp", "state.h"))
FOLDER = Path(__file__).parents[2] / "build" / "pretend"


def why_not() -> str | None:
    """None where the library can be made, else the reason in one line."""
    if _compiler() is None:
        return "there is no C++ compiler: install g++, or name one in CXX"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; pip install triton"
    if any((_torch() / "lib").glob("libtorch_cuda*")):
        return "this torch has a CUDA of its own; install its CPU build"
    return None


def library() -> Path:
    """The shared library, made where it is not there yet; under its name only once it is whole.

    Raises:
        RuntimeError: it does not compile, with what the compiler says.
    """
    version, include, lib = importlib.metadata.version("torch"), _torch() / "include", _torch() / "lib"
    command = [
        *(str(_compiler()), "-std=c++20", "-O1", "-fPIC", "-shared", str(SOURCE)),
        *(f"-I{include}", f"-I{include / 'torch/csrc/api/include'}"),
        *(f"-L{lib}", f"-Wl,-rpath,{lib}", "-ltorch", "-ltorch_cpu", "-lc10"),
    ]
    digest = hashlib.sha256("\n".join([SOURCE.read_text(), HEADER.read_text(), version, *command]).encode()).hexdigest()
    target = FOLDER / f"pretend-{digest[:16]}.so"
    if target.is_file():
        return target
    FOLDER.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(f".{os.getpid()}")
    done = subprocess.run([*command, "-o", str(unfinished)], capture_output=True, text=True)
    if done.returncode:
        unfinished.unlink(missing_ok=True)
        raise RuntimeError(f"{SOURCE.name} does not compile with torch {version}:\n{done.stderr[-4000:]}")
    os.replace(unfinished, target)
    return target


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++"))


def _torch() -> Path:
    """The folder of the installed torch."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise RuntimeError("torch is not installed")
    return Path(found.origin).parent
