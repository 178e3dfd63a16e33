# SPDX-License-Identifier: Apache-2.0
"""Attention over packed sequences."""

from .api import segment_attention as segment_attention
from .segments import Segments as Segments
