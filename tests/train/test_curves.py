# SPDX-License-Identifier: Apache-2.0
"""The bar of a training run."""

import pytest

pytest.importorskip("accelerate")
from transformers import TrainerControl, TrainerState
from transformers.utils import logging

from patchrec_fast.train.curves import Bar, Curves


@pytest.mark.parametrize("before", [True, False])
def test_no_other_bar_while_it_is_shown(before, tmp_path):
    was = logging.is_progress_bar_enabled()
    (logging.enable_progress_bar if before else logging.disable_progress_bar)()
    try:
        bar, control = Bar(Curves(tmp_path / "curves.csv")), TrainerControl()
        bar.on_train_begin(None, TrainerState(max_steps=3), control)
        assert not logging.is_progress_bar_enabled()
        bar.on_train_end(None, TrainerState(max_steps=3), control)
        assert logging.is_progress_bar_enabled() == before
    finally:
        (logging.enable_progress_bar if was else logging.disable_progress_bar)()
