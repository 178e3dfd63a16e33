# SPDX-License-Identifier: Apache-2.0
"""Packages whose public names are imported when they are first asked for, so that `--help` needs no torch."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazily(package: str, places: Mapping[str, str], parts: tuple[str, ...] = ()) -> Callable[[str], Any]:
    """The `__getattr__` of a package (PEP 562).

    Args:
        package: its `__name__`.
        places: public name -> the module of the package that has it.
        parts: modules of the package that are its attributes before anybody has imported them.
    """

    def find(name: str) -> Any:
        if name in parts:
            return importlib.import_module(f"{package}.{name}")
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(f"{package}.{places[name]}"), name)
        setattr(sys.modules[package], name, found)  # the next one finds it there
        return found

    return find
