# SPDX-License-Identifier: Apache-2.0
"""Fused patch compression for recommending with large language models over very long user histories.

Importing this imports torch and NumPy, neither Triton nor transformers.
"""

from ._version import __version__ as __version__
from .evaluation import evaluate as evaluate
from .hf import attach as attach
from .layout import Catalogue as Catalogue
from .layout import Dropout as Dropout
from .layout import ItemPatches as ItemPatches
from .layout import PackedBatch as PackedBatch
from .layout import Packer as Packer
from .layout import Prompt as Prompt
from .layout import RandomItemPatches as RandomItemPatches
from .layout import SessionPatches as SessionPatches
from .layout import Text as Text
from .models import load as load
from .models import save as save
from .ops.compress import compress as compress
from .ops.compress import use_embedding as use_embedding
from .recommend import Recommender as Recommender
