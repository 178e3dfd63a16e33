# SPDX-License-Identifier: Apache-2.0
"""Keys and values of rows: what is held of them, and what is held from one call to the next, within a bound of memory.

A call decodes from `KeyValues` (`patchrec_fast.hf.decode_cache`), and copies of some of them are the entries of
`KVCache`, behind which the next call goes on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._check import check_count
from ..layout.rows import PromptRows

Pair = tuple[Tensor, Tensor]
"""Keys and values (rows, Hk, D) of a layer."""


class KeyValues:
    """Keys and values of contiguous rows, of all layers.

    Attributes:
        layers: by layer, keys and values (rows, Hk, D); there may be room for more rows than are in use.
    """

    def __init__(self, layers: dict[int, Pair] | None = None) -> None:
        """Set up; of no layer yet by default."""
        self.layers = {} if layers is None else layers

    @property
    def bytes(self) -> int:
        """Of the rows that there is room for."""
        return sum(x.numel() * x.element_size() for pair in self.layers.values() for x in pair)

    def copy(self, first: int, last: int) -> KeyValues:
        """These rows alone: it holds no more memory than they need, and what is written here does not reach it."""
        return KeyValues({at: (key[first:last].clone(), value[first:last].clone()) for at, (key, value) in self})

    def to(self, device: torch.device) -> KeyValues:
        """On another device; the same where it is there."""
        return KeyValues({at: (key.to(device), value.to(device)) for at, (key, value) in self})

    def reserve(self, layer: int, rows: int, key: Tensor, value: Tensor) -> Pair:
        """A layer's keys and values with room for so many rows of these shapes: the same memory where it has that, else
        of twice the rows at least, zeros behind what it holds."""
        held = self.layers.get(layer)
        if held is None or len(held[0]) < rows:
            size = rows if held is None else max(rows, 2 * len(held[0]))
            grown = key.new_zeros(size, *key.shape[1:]), value.new_zeros(size, *value.shape[1:])
            for old, new in zip(held or (), grown, strict=False):
                new[: len(old)] = old
            self.layers[layer] = held = grown
        return held

    def __iter__(self) -> Iterator[tuple[int, Pair]]:
        return iter(self.layers.items())


class Entry(NamedTuple):
    """A prompt that was read: what its rows are, and their keys and values."""

    prompt: PromptRows
    rows: KeyValues


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
        self._on_device: OrderedDict[Hashable, Entry] = OrderedDict()
        self._on_host: OrderedDict[Hashable, Entry] = OrderedDict()

    def __len__(self) -> int:
        """The number of prompts."""
        return len(self._on_device) + len(self._on_host)

    def check_model(self, fingerprint: Any) -> None:
        """Forgets all where what is kept is another model's."""
        if self._model != fingerprint:
            self.clear()
            self._model = fingerprint

    def get(self, key: Hashable, device: torch.device) -> Entry | None:
        """The prompt of a key, on the device; None where it is not kept."""
        if (entry := self._on_device.get(key)) is not None:
            self._on_device.move_to_end(key)
            return entry
        if (entry := self._on_host.pop(key, None)) is None:
            return None
        self.bytes_on_host -= entry.rows.bytes
        entry = Entry(entry.prompt, entry.rows.to(device))
        self.put(key, entry)
        return entry

    def put(self, key: Hashable, entry: Entry) -> None:
        """Keeps a prompt in the place of the one that the key had."""
        self.drop(key)
        if entry.rows.bytes > self.max_bytes:
            self._put_on_host(key, entry)
            return
        self._on_device[key] = entry
        self.bytes += entry.rows.bytes
        while self.bytes > self.max_bytes:
            oldest, leaving = self._on_device.popitem(last=False)
            self.bytes -= leaving.rows.bytes
            self._put_on_host(oldest, leaving)

    def _put_on_host(self, key: Hashable, entry: Entry) -> None:
        if entry.rows.bytes > self.host_bytes:
            return
        self._on_host[key] = Entry(entry.prompt, entry.rows.to(torch.device("cpu")))
        self.bytes_on_host += entry.rows.bytes
        while self.bytes_on_host > self.host_bytes:
            self.bytes_on_host -= self._on_host.popitem(last=False)[1].rows.bytes

    def drop(self, key: Hashable) -> None:
        """Forgets a key, kept or not."""
        if (entry := self._on_device.pop(key, None)) is not None:
            self.bytes -= entry.rows.bytes
        if (entry := self._on_host.pop(key, None)) is not None:
            self.bytes_on_host -= entry.rows.bytes

    def clear(self) -> None:
        """Forgets all."""
        self._on_device.clear()
        self._on_host.clear()
        self.bytes = self.bytes_on_host = 0
