# SPDX-License-Identifier: Apache-2.0
"""Recommenders without a language model, as `Ranker`s: what one with a language model has to beat."""

from .item_to_item import EASE as EASE
from .item_to_item import ItemKNN as ItemKNN
from .item_to_item import ItemToItem as ItemToItem
from .item_to_item import Transitions as Transitions
from .names import NAMES as NAMES
from .names import baseline as baseline
from .popularity import Chance as Chance
from .popularity import Popularity as Popularity
from .ranker import Baseline as Baseline
from .recipes import Recipe as Recipe
from .sequential import Sequential as Sequential
from .training import train as train
