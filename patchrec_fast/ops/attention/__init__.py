# SPDX-License-Identifier: Apache-2.0
"""Attention over packed sequences."""

from .segments import Segments as Segments
