# SPDX-License-Identifier: Apache-2.0
"""Fused patch compression for recommending with large language models over very long user histories.

Importing this imports none of torch, Triton and transformers; a name of it is imported, with torch, when it is first
asked for.
"""

from typing import TYPE_CHECKING

from ._lazy import lazily
from ._version import __version__ as __version__

if TYPE_CHECKING:
    from . import data as data
    from . import evaluation as evaluation
    from . import hf as hf
    from . import layout as layout
    from . import ops as ops
    from . import ragged as ragged
    from . import recommend as recommend
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

_PLACES = {
    "Catalogue": "layout",
    "Dropout": "layout",
    "ItemPatches": "layout",
    "PackedBatch": "layout",
    "Packer": "layout",
    "Prompt": "layout",
    "RandomItemPatches": "layout",
    "Recommender": "recommend",
    "SessionPatches": "layout",
    "Text": "layout",
    "attach": "hf",
    "compress": "ops.compress",
    "evaluate": "evaluation",
    "load": "models",
    "save": "models",
    "use_embedding": "ops.compress",
}
_PARTS = ("data", "evaluation", "hf", "layout", "ops", "ragged", "recommend")
__all__ = ["__version__", *_PLACES]

if not TYPE_CHECKING:  # a checker would take any name for one
    __getattr__ = lazily(__name__, _PLACES, _PARTS)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES, *_PARTS})
