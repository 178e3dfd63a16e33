# SPDX-License-Identifier: Apache-2.0
"""Builds csrc/ into `patchrec_fast/_native.so`, a plain shared library loaded with ctypes.

It uses no Python and no torch headers, so the wheel is `py3-none-<platform>` and an isolated build downloads
nothing but setuptools. Without a C++ compiler the package still installs and the PyTorch reference serves;
PATCHREC_FAST_REQUIRE_NATIVE=1 turns a failed native build into an error.
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

COMPILE = ["-std=c++17", "-O3", "-g0", "-Wall", "-Wextra", "-Wno-psabi"]


class BuildNative(build_ext):
    """A shared library without a Python ABI in its name, and a build that may fail."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []  # the default exports PyInit_*, which a plain library does not have

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:  # setuptools raises many kinds, from a missing compiler to a failed link
            self.explain(error)

    def copy_extensions_to_source(self) -> None:
        for ext in self.extensions:
            if Path(self.get_ext_fullpath(ext.name)).exists() or Path(self.built(ext)).exists():
                super().copy_extensions_to_source()

    def built(self, ext: Extension) -> str:
        return os.path.join(self.build_lib, self.get_ext_filename(ext.name))

    def explain(self, error: Exception) -> None:
        if os.environ.get("PATCHREC_FAST_REQUIRE_NATIVE") == "1":
            raise error
        print(
            f"\npatchrec_fast: the native CPU kernels were NOT built: {error}\n"
            "patchrec_fast: the package installs and runs on its PyTorch reference, several times slower on CPU.\n"
            "patchrec_fast: install g++ or clang++ and reinstall; `python -m patchrec_fast.info` shows what serves.\n",
            file=sys.stderr,
        )


class NativeWheel(bdist_wheel):
    """Any Python 3, no Python ABI, this platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


setup(
    ext_modules=[
        Extension(
            "patchrec_fast._native",
            sources=["csrc/compress.cpp", "csrc/csr.cpp", "csrc/segment_sum.cpp"],
            depends=["csrc/compress.h", "csrc/rows.h", "csrc/segments.h", "csrc/simd.h"],
            extra_compile_args=COMPILE,
            language="c++",
        )
    ],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": NativeWheel},
)
