# SPDX-License-Identifier: Apache-2.0
"""What importing `patchrec_fast.train` brings, and what it costs."""

import subprocess
import sys
from pathlib import Path

import pytest

from patchrec_fast import train

ROOT = Path(__file__).parents[2]


def test_importing_does_not_import_transformers():
    code = "import sys, patchrec_fast.train as _; print({'transformers', 'accelerate'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_guard_is_a_callback():
    transformers = pytest.importorskip("transformers")
    assert issubclass(train.Guard, transformers.TrainerCallback)
    with pytest.raises(AttributeError, match="no attribute 'Guards'"):
        train.Guards  # noqa: B018
