# SPDX-License-Identifier: Apache-2.0
"""`patchrec_fast.evaluate` is a function and a subpackage; whatever is imported first, it stays the function."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = """
import sys
sys.path.insert(0, "kernels")
import patchrec_fast.evaluate.compression  # the deepest first
import patchrec_fast as pf
first = pf.evaluate
from patchrec_fast.evaluate import Report, measure_compression
import importlib, patchrec_fast.evaluate, patchrec_fast.evaluate.profile
importlib.import_module("patchrec_fast.evaluate.memory")
from patchrec_fast import evaluate
assert first is pf.evaluate is evaluate and callable(evaluate), (first, pf.evaluate)
assert evaluate.__module__ == "patchrec_fast.evaluate.run"
assert measure_compression.__module__ == "patchrec_fast.evaluate.compression"
"""


def test_the_function_stays():
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
