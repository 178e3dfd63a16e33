# SPDX-License-Identifier: Apache-2.0
import pytest

from tests.baselines.random_data import random_data


@pytest.fixture(params=range(4))
def made(request):
    return random_data(request.param)
