# SPDX-License-Identifier: Apache-2.0
"""Every kernel test is run with guarded memory, where Triton interprets."""

import os
import zlib

import pytest


@pytest.fixture(autouse=True)
def guard(request, monkeypatch):
    """The test's `Guard`; None where kernels are compiled, or there is no Triton."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return None
    pytest.importorskip("triton", reason="needs Triton: pip install triton")
    from tests.kernels.guard import Guard

    made = Guard(seed=zlib.crc32(request.node.nodeid.encode()))
    made.install(monkeypatch)
    return made
