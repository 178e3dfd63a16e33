# SPDX-License-Identifier: Apache-2.0
"""Training stages for stock trainers. Importing this does not import transformers; `Guard` does."""

from typing import TYPE_CHECKING, Any

from .arguments import trainer_arguments as trainer_arguments
from .batches import MicroBatch as MicroBatch
from .batches import MicroBatches as MicroBatches
from .by_user import Passes as Passes
from .by_user import passes as passes
from .collator import Collator as Collator
from .stages import STAGES as STAGES
from .stages import Stage as Stage
from .stages import stage as stage

if TYPE_CHECKING:
    from .guard import Guard as Guard


def __getattr__(name: str) -> Any:
    if name == "Guard":
        from .guard import Guard

        return Guard
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
