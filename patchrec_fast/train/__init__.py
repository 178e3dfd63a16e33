# SPDX-License-Identifier: Apache-2.0
"""Training stages for stock trainers. Importing this does not import transformers."""

from .arguments import trainer_arguments as trainer_arguments
from .batches import MicroBatch as MicroBatch
from .batches import MicroBatches as MicroBatches
from .collator import Collator as Collator
from .stages import STAGES as STAGES
from .stages import Stage as Stage
from .stages import stage as stage
