# SPDX-License-Identifier: Apache-2.0
"""Keys and values of prompts, kept from one call to the next, within a bound of memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._check import check_count
from ..layout.rows import PromptRows

Layers = dict[int, tuple[Tensor, Tensor]]
"""By layer: keys and values (R, Hk, D) of a prompt's rows."""


def first_rows(layers: Layers, rows: int) -> Layers:
    """A copy of the first rows, which keeps no more than these."""
    return {layer: (key[:rows].clone(), value[:rows].clone()) for layer, (key, value) in layers.items()}


class Kept(NamedTuple):
    """A prompt, read."""

    prompt: PromptRows
    layers: Layers

    @property
    def bytes(self) -> int:
        """Of the keys and values."""
        return sum(x.numel() * x.element_size() for pair in self.layers.values() for x in pair)

    def to(self, device: torch.device) -> Kept:
        """On another device; the same where it is there."""
        moved = {layer: (key.to(device), value.to(device)) for layer, (key, value) in self.layers.items()}
        return Kept(self.prompt, moved)


class KVCache:
    """The prompts of users who return (`Recommender.engine`), by the caller's ids of users.

    They are kept on the model's device and, behind that, in host memory. The least recently used leave first: from the
    device to the host, from the host for good. One that is larger than a bound is not kept there.

    Attributes:
        max_bytes, host_bytes: as given.
        bytes, bytes_on_host: of what is kept now.
        rows_reused: of all calls so far, rows of prompts that were not read again.
        rows_read: and those that were.
    """

    def __init__(self, max_bytes: int, host_bytes: int = 0) -> None:
        """Set up.

        Args:
            max_bytes: of keys and values on the device, at most.
            host_bytes: the same in host memory, for a model that is on another device.

        Raises:
            TypeError, ValueError: not whole numbers, or below 0.
        """
        self.max_bytes = check_count("max_bytes", max_bytes, minimum=0)
        self.host_bytes = check_count("host_bytes", host_bytes, minimum=0)
        self.bytes = self.bytes_on_host = self.rows_reused = self.rows_read = 0
        self._model: Any = None
        self._near: OrderedDict[Hashable, Kept] = OrderedDict()
        self._far: OrderedDict[Hashable, Kept] = OrderedDict()

    def __len__(self) -> int:
        """The number of prompts."""
        return len(self._near) + len(self._far)

    def check_model(self, fingerprint: Any) -> None:
        """Forgets all where what is kept is another model's."""
        if self._model != fingerprint:
            self.clear()
            self._model = fingerprint

    def get(self, key: Hashable, device: torch.device) -> Kept | None:
        """The prompt of a key, on the device; None where it is not kept."""
        if (kept := self._near.get(key)) is not None:
            self._near.move_to_end(key)
            return kept
        if (kept := self._far.pop(key, None)) is None:
            return None
        self.bytes_on_host -= kept.bytes
        kept = kept.to(device)
        self.put(key, kept)
        return kept

    def put(self, key: Hashable, kept: Kept) -> None:
        """Keeps a prompt in the place of the one that the key had."""
        self.drop(key)
        if kept.bytes > self.max_bytes:
            self._put_on_host(key, kept)
            return
        self._near[key] = kept
        self.bytes += kept.bytes
        while self.bytes > self.max_bytes:
            oldest, leaving = self._near.popitem(last=False)
            self.bytes -= leaving.bytes
            self._put_on_host(oldest, leaving)

    def _put_on_host(self, key: Hashable, kept: Kept) -> None:
        if kept.bytes > self.host_bytes:
            return
        self._far[key] = kept.to(torch.device("cpu"))
        self.bytes_on_host += kept.bytes
        while self.bytes_on_host > self.host_bytes:
            self.bytes_on_host -= self._far.popitem(last=False)[1].bytes

    def drop(self, key: Hashable) -> None:
        """Forgets a key, kept or not."""
        if (kept := self._near.pop(key, None)) is not None:
            self.bytes -= kept.bytes
        if (kept := self._far.pop(key, None)) is not None:
            self.bytes_on_host -= kept.bytes

    def clear(self) -> None:
        """Forgets all."""
        self._near.clear()
        self._far.clear()
        self.bytes = self.bytes_on_host = 0
