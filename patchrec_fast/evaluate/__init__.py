# SPDX-License-Identifier: Apache-2.0
"""What a policy saves and what a recommender is worth."""

from .compression import Compression as Compression
from .compression import catalogue_ratio as catalogue_ratio
from .compression import measure_compression as measure_compression
