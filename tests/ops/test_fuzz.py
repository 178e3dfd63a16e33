# SPDX-License-Identifier: Apache-2.0
"""A sample of `make fuzz`."""

import pytest
import torch

from patchrec_fast.ops import native
from patchrec_fast.ops.compress import cpu
from tests.ops import fuzz


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_random_calls(first, threads):
    """The seed of a case that fails is in its traceback: python -m tests.ops.fuzz --seed N --cases 1."""
    threads(1)
    for seed in range(first, first + 20):
        try:
            fuzz.case(seed, "cuda" if torch.cuda.is_available() else "cpu")
        except Exception as error:
            raise AssertionError(f"python -m tests.ops.fuzz --seed {seed} --cases 1") from error


@pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))
def test_a_wrong_kernel_is_found(monkeypatch):
    """One element of one output off by 1 %."""
    right = cpu.compress

    def wrong(*arguments):
        out = right(*arguments)
        if out.numel():
            out[-1, -1] *= 1.01
        return out

    monkeypatch.setattr(cpu, "compress", wrong)
    with pytest.raises(AssertionError):
        list(map(fuzz.case, range(40)))
