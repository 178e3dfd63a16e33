# SPDX-License-Identifier: Apache-2.0
"""The tiny model under training's name for it; it is made where all commands make models."""

from ..models.tiny import tiny_model as tiny_model
