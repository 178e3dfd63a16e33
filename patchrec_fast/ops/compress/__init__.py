# SPDX-License-Identifier: Apache-2.0
"""`compress`: ragged lookups, averaged into patches."""

from .api import compress as compress
from .embedding import use_embedding as use_embedding
from .plan import Plan as Plan
from .plan import make_plan as make_plan
