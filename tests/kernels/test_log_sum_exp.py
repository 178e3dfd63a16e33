# SPDX-License-Identifier: Apache-2.0
"""`log_sum_exp`'s kernel against float64: on the GPU, or on the CPU by Triton's interpreter."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="needs Triton: pip install triton")

from patchrec_kernels import log_sum_exp as kernels

from patchrec_fast.ops.log_sum_exp import finished, log_sum_exp

pytestmark = pytest.mark.usefixtures("triton_serves", "poisoned")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INF, NAN = torch.inf, torch.nan


def exact(logits, scale=1.0, softcap=None):
    return finished(logits.double(), scale, softcap).logsumexp(1)


def check(logits, splits=None, scale=1.0, softcap=None):
    got = kernels.log_sum_exp(logits, scale, softcap, splits)
    assert got.dtype is torch.float32
    largest = finished(logits.double(), scale, softcap).abs().amax(1, keepdim=True).clamp(min=1).flatten()
    # A logit is rounded by its scale, its cap (a sigmoid, two sums, two products) and its distance to the largest;
    # the sum, by its terms' rounding and a few of its own; the result, once.
    bound = 2.0**-24 * ((12 if softcap else 4) * largest + 64)
    error = (got.double() - exact(logits, scale, softcap)).abs()
    assert (error <= bound).all(), (error / bound).max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rules", [{}, {"scale": 0.25}, {"softcap": 3.0}, {"scale": 2.0, "softcap": 30.0}], ids=str)
@pytest.mark.parametrize("across", [True, False])
def test_logits_of_any_layout(device, dtype, rules, across):
    """Rows whose elements are adjacent, and columns whose are, a part of a wider matrix; more than two tiles."""
    tile = kernels.ACROSS if across else kernels.DOWN
    rows, columns = 2 * tile.rows + 1, 2 * tile.columns + 77
    shape = (rows, columns + 3) if across else (columns, rows + 3)
    wide = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul(4).to(device, dtype)
    check(wide[:, :columns] if across else wide[:, :rows].mT, **rules)


@pytest.mark.parametrize("seed", range(20))
def test_any_shape(device, seed):
    """Random sizes, strides, splits and magnitudes."""
    rng = np.random.default_rng(seed)
    rows, columns, splits = (int(n) for n in rng.integers(1, [140, 9000 if seed % 2 else 300, 7]))
    rows = min(rows, 9) if seed % 2 else rows
    logits = torch.from_numpy(rng.standard_normal((columns, rows)) * 10.0 ** rng.integers(-2, 3))
    logits = logits.to(device, DTYPES[seed % 3])
    check(logits.mT if seed % 4 < 2 else logits.mT.contiguous(), splits)


def test_neither_dimension_adjacent(device):
    check(torch.randn(6, 500, 2, generator=torch.Generator().manual_seed(1)).to(device)[..., 1])


@pytest.mark.parametrize("splits", [1, 3])
def test_logits_that_are_not_finite(device, splits):
    """As torch.logsumexp: +inf and NaN reach the result, -inf counts nothing, a row of it alone is -inf."""
    logits = torch.zeros(6, 9000)
    logits[0, 5000] = INF
    logits[1, 5000] = NAN
    logits[2, :8000] = -INF
    logits[3] = -INF
    logits[4, [0, 8999]] = torch.tensor([INF, -INF])
    logits[5, [0, 8999]] = torch.tensor([INF, NAN])
    got = kernels.log_sum_exp(logits.to(device), splits=splits).cpu()
    torch.testing.assert_close(got, logits.logsumexp(1), rtol=2**-22, atol=0, equal_nan=True)
    capped = kernels.log_sum_exp(logits.to(device), softcap=2.0, splits=splits).cpu()  # infinities are, too
    torch.testing.assert_close(capped, finished(logits, softcap=2.0).logsumexp(1), rtol=2**-21, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_nothing(device, shape):
    logits = torch.zeros(shape, device=device)
    torch.testing.assert_close(kernels.log_sum_exp(logits), logits.logsumexp(1))


def test_the_operator_takes_the_kernel(device, monkeypatch):
    logits = torch.randn(3, 40, device=device)
    used = []
    real = kernels.log_sum_exp
    monkeypatch.setattr(kernels, "log_sum_exp", lambda *args: used.append(1) or real(*args))
    torch.testing.assert_close(
        log_sum_exp(logits, softcap=2.0, impl="triton"), log_sum_exp(logits, softcap=2.0, impl="reference")
    )
    assert used
