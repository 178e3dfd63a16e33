# SPDX-License-Identifier: Apache-2.0
"""From item titles and user histories to packed rows."""

from .batch import PackedBatch as PackedBatch
from .catalogue import Catalogue as Catalogue
from .history import History as History
from .packing import Packer as Packer
from .policies import Assignment as Assignment
from .policies import Dropout as Dropout
from .policies import Grain as Grain
from .policies import ItemPatches as ItemPatches
from .policies import Policy as Policy
from .policies import RandomItemPatches as RandomItemPatches
from .policies import SessionPatches as SessionPatches
from .policies import Text as Text
from .prompt import Prompt as Prompt
