# SPDX-License-Identifier: Apache-2.0
"""`pytest -p tests.pretend.plugin`: the pretended device, for the whole process, before anybody imports torch."""

import ctypes
import os
import sys

import pytest

from . import compiled

if "torch" in sys.modules:
    raise pytest.UsageError("tests.pretend.plugin: torch is imported already; name the plugin with -p")

WHY_NOT = compiled.why_not()
"""Why the device is not there; None where it is."""

if WHY_NOT is None:
    os.environ["TRITON_INTERPRET"] = "1"
    ctypes.CDLL(str(compiled.library()), mode=ctypes.RTLD_GLOBAL)

    from . import device, launches

    device.install()
    launches.install()
