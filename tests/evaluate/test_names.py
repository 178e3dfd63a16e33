# SPDX-License-Identifier: Apache-2.0
"""`patchrec_fast.evaluate` is a function and a subpackage; whatever is imported first, it stays the function."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "first",
    [
        "import patchrec_fast",
        "import patchrec_fast.evaluate",
        "import patchrec_fast.evaluate.compression",
        "from patchrec_fast.evaluate import measure_compression",
        "from patchrec_fast.evaluate.metrics import ranks",
        "import importlib; importlib.import_module('patchrec_fast.evaluate.memory')",
    ],
)
def test_the_function_stays(first):
    code = f"""
import sys
sys.path.insert(0, "kernels")
{first}
import patchrec_fast as pf, patchrec_fast.evaluate.profile
from patchrec_fast import evaluate
from patchrec_fast.evaluate import Report, measure_compression
assert pf.evaluate is evaluate and evaluate.__name__ == "evaluate" and callable(evaluate), pf.evaluate
assert measure_compression.__module__ == "patchrec_fast.evaluate.compression"
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
