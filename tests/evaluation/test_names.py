# SPDX-License-Identifier: Apache-2.0
"""`patchrec_fast.evaluate` is a function, `patchrec_fast.evaluation` its package, whatever is imported first."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = """
import sys
sys.path.insert(0, "kernels")
import patchrec_fast.evaluation.compression  # the deepest first
import patchrec_fast as pf
import patchrec_fast.evaluation.profile as profile
import patchrec_fast.evaluation as package
from patchrec_fast import evaluate
assert pf.evaluate is evaluate is package.evaluate and callable(evaluate)
assert pf.evaluation is package and package.profile is profile
assert evaluate.__module__ == "patchrec_fast.evaluation.run"
"""


def test_the_function_and_its_package():
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
