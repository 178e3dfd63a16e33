# SPDX-License-Identifier: Apache-2.0
"""What a policy saves and what a recommender is worth."""

from ..baselines import Chance as Chance
from ..baselines import Popularity as Popularity
from .compression import Compression as Compression
from .compression import catalogue_ratio as catalogue_ratio
from .compression import measure_compression as measure_compression
from .intervals import Comparison as Comparison
from .intervals import Estimate as Estimate
from .report import Report as Report
from .run import evaluate as evaluate
