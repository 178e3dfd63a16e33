# SPDX-License-Identifier: Apache-2.0
"""On the pretended device: `make pretend`. Elsewhere these tests are skipped: it has to be there before torch is."""

import sys

import pytest

from tests.hf.conftest import make_model, pack, sample  # noqa: F401


@pytest.fixture(autouse=True, scope="session")
def _pretended():
    plugin = sys.modules.get("tests.pretend.plugin")
    if plugin is None:
        pytest.skip("needs the pretended device, in a process of its own: make pretend")
    if plugin.WHY_NOT:
        pytest.skip(f"the pretended device: {plugin.WHY_NOT}")


@pytest.fixture
def pretend(_pretended):
    """The pretended device, its counts at zero."""
    from tests.pretend import device

    device.reset()
    yield device
    device.ops.set_sync_mode(0)
