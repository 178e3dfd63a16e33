# SPDX-License-Identifier: Apache-2.0
"""The data and the packer of the evaluation's tests."""

from tests.evaluation.conftest import packer as packer
from tests.evaluation.conftest import sample as sample
