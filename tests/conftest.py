# SPDX-License-Identifier: Apache-2.0
"""The real data and tokenizer, where the environment names them."""

import importlib.metadata
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from patchrec_fast.ops import backends


def _folder(variable: str, holds: str) -> Path:
    folder = os.environ.get(variable)
    if not folder or not Path(folder).is_dir():
        pytest.skip(f"needs {variable}, a folder with {holds}")
    return Path(folder)


@pytest.fixture(scope="session")
def data_dir():
    """The folder with ml-1m, goodreads and ml-100k in the prepared format."""
    return _folder("PATCHREC_FAST_DATA", "ml-1m, goodreads and ml-100k")


@pytest.fixture(scope="session")
def tokenizer():
    """The Llama-3 tokenizer."""
    folder = _folder("PATCHREC_FAST_TOKENIZER", "the Llama-3 tokenizer")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def poisoned():
    """Memory that torch hands out uninitialised is NaN, so that a row left unwritten shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # cuBLAS would raise
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = filled
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def threads():
    """Sets the number of threads, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def device():
    """Where the kernels run: on the GPU if there is one, else on the CPU, Triton's by its interpreter."""
    if torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        return torch.device("cuda")
    return torch.device("cpu")


@pytest.fixture(scope="session")
def triton_serves(device):
    """Skips where `device` has no Triton, before a module's fixtures are made."""
    reason = backends.why_not("triton", device.type)
    if reason:
        pytest.skip(f"Triton's kernels: {reason}")
    if (
        device.type == "cpu"
        and importlib.metadata.version("triton").startswith("3.6.")
        and np.lib.NumpyVersion(np.__version__) >= "2.4.0"
    ):
        pytest.skip(f"Triton 3.6's interpreter takes no numpy from 2.4 on, and this is {np.__version__}")


@pytest.fixture(scope="session")
def interpreted(triton_serves, device):
    """Skips where the kernels are compiled: for tests of what only CPU memory has."""
    if device.type != "cpu":
        pytest.skip("for Triton's interpreter: TRITON_INTERPRET=1")


@pytest.fixture(params=["cpu", "triton", "reference"])
def served(request, device):
    """(impl, device) of every backend that serves here."""
    where = torch.device("cpu") if request.param == "cpu" else device
    reason = backends.why_not(request.param, where.type)
    if reason:
        pytest.skip(reason)
    return request.param, where
