# SPDX-License-Identifier: Apache-2.0
"""Training stages for stock trainers. A name is imported when it is first asked for; `Guard` imports transformers."""

from typing import TYPE_CHECKING

from .._lazy import lazily

if TYPE_CHECKING:
    from .._options import STAGES as STAGES
    from .arguments import trainer_arguments as trainer_arguments
    from .batches import MicroBatch as MicroBatch
    from .batches import MicroBatches as MicroBatches
    from .by_user import Passes as Passes
    from .by_user import passes as passes
    from .collator import Collator as Collator
    from .guard import Guard as Guard
    from .stages import Stage as Stage
    from .stages import stage as stage

_PLACES = {
    "Collator": "collator",
    "Guard": "guard",
    "MicroBatch": "batches",
    "MicroBatches": "batches",
    "Passes": "by_user",
    "STAGES": "stages",
    "Stage": "stages",
    "passes": "by_user",
    "stage": "stages",
    "trainer_arguments": "arguments",
}

if not TYPE_CHECKING:
    __getattr__ = lazily(__name__, _PLACES)
