# SPDX-License-Identifier: Apache-2.0
"""Triton's interpreter with guarded memory.

Every pointer that a kernel is given points into an address space of its own, where no memory is. A load or a store is
translated to the tensor it belongs to, so one that leaves its tensor cannot hit the neighbour, or a gap between rows:
it raises. So does a load of what nobody wrote, from memory that `patchrec_kernels` allocated without filling it; so do
two programs of a launch that write one element, or one that reads what another writes. Programs run in random order,
and the first launch of each kernel is repeated from the same memory in another order, which has to give the same bits.

Not seen: what only compiled code does (alignment of wide accesses, order within a program), and what a mask hides.
"""

from __future__ import annotations

import itertools
import random
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from triton.runtime import interpreter

GUARDED = "patchrec_kernels"
_SPACE = 44  # bits of an address space


class Fault(AssertionError):
    """A kernel did what it must not. Triton raises it as the text of an InterpreterError."""


@dataclass
class Storage:
    """What a launch did to the bytes of one allocation. An element's state is kept at its first byte."""

    data: NDArray[np.uint8]
    written: NDArray[np.bool_] | None  # since it was allocated; None: filled before any kernel saw it
    writer: NDArray[np.int32] = field(init=False)  # of this launch, the program's number; 0: none
    reader: NDArray[np.int32] = field(init=False)  # the same; -1: several

    def __post_init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.writer, self.reader = (np.zeros(len(self.data), np.int32) for _ in range(2))


@dataclass
class Region:
    """The address space of one tensor argument."""

    name: str
    tensor: Tensor
    base: int
    storage: Storage

    def places(self, addresses: NDArray[np.uint64], size: int) -> NDArray[np.int64]:
        """Where in the storage, in bytes, these addresses of elements of `size` bytes are.

        Raises:
            Fault: some are outside the tensor, or between its elements.
        """
        offset = addresses.astype(np.int64) - self.base
        left, rest = np.divmod(offset, self.tensor.element_size())
        for length, stride in sorted(zip(self.tensor.shape, self.tensor.stride(), strict=True), key=lambda x: -x[1]):
            left -= np.clip(left // max(1, stride), 0, length - 1) * stride
        outside = (left != 0) | (rest != 0) | (size != self.tensor.element_size()) | (self.tensor.numel() == 0)
        if outside.any():
            raise Fault(
                f"outside {self.name}: {int(outside.sum())} addresses, the first {int(offset[outside][0])} bytes from "
                f"the start of a tensor of shape {tuple(self.tensor.shape)}, strides {self.tensor.stride()}"
            )
        return offset + self.tensor.storage_offset() * self.tensor.element_size()


class Memory:
    """Stands in for the interpreter's C++ module, whose loads and stores take addresses."""

    def __init__(self, real: Any, guard: Guard) -> None:
        self._real, self._guard = real, guard

    def __getattr__(self, name: str) -> Any:
        if name.startswith("atomic"):
            raise Fault(f"{name}: the guard knows loads and stores only")
        return getattr(self._real, name)

    def load(self, pointers: Any, mask: Any, other: Any, dtype: Any) -> Any:
        return self._real.load(self._guard.reading(pointers, mask, np.dtype(dtype).itemsize), mask, other, dtype)

    def store(self, pointers: Any, value: Any, mask: Any) -> Any:
        return self._real.store(self._guard.writing(pointers, mask, value.dtype.itemsize), value, mask)


class Guard:
    """One for a test: it keeps what it saw allocated alive, so that no address is used twice."""

    def __init__(self, seed: int = 0) -> None:
        self.launches = self.programs = self.loads = self.stores = 0  # of elements; a repetition counts too
        self._random = random.Random(seed)
        self._fresh: dict[int, tuple[Tensor, NDArray[np.bool_]]] = {}
        self._regions: list[Region] = []
        self._order: list[tuple[int, int, int]] = []
        self._program = 0
        self._repeated: set[str] = set()

    def install(self, monkeypatch: Any) -> None:
        """Until the end of the test."""
        monkeypatch.setattr(interpreter, "_interpreter", Memory(interpreter._interpreter, self))
        convert, launch = interpreter._implicit_cvt, interpreter.GridExecutor.__call__
        builder = type(interpreter.interpreter_builder)
        set_index, empty, new_empty = builder.set_grid_idx, torch.empty, Tensor.new_empty

        def converted(argument: Any) -> Any:
            made = convert(argument)
            if isinstance(argument, Tensor):
                made.handle.data[:] = next(self._pointers)
            return made

        def launched(executor: Any, *args: Any, **options: Any) -> None:
            self._launch(lambda: launch(executor, *args, **options), executor, args, options)

        def indexed(of: Any, x: int, y: int, z: int) -> None:
            set_index(of, *self._next_program())

        def noted(made: Tensor) -> Tensor:
            if sys._getframe(2).f_globals["__name__"].startswith(GUARDED) and made.numel():
                storage = made.untyped_storage()
                self._fresh[storage.data_ptr()] = made, np.zeros(storage.nbytes(), np.bool_)
            return made

        monkeypatch.setattr(interpreter, "_implicit_cvt", converted)
        monkeypatch.setattr(interpreter.GridExecutor, "__call__", launched)
        monkeypatch.setattr(builder, "set_grid_idx", indexed)
        monkeypatch.setattr(torch, "empty", lambda *args, **options: noted(empty(*args, **options)))
        monkeypatch.setattr(Tensor, "new_empty", lambda *args, **options: noted(new_empty(*args, **options)))

    def _launch(self, run: Any, executor: Any, args: Any, options: dict[str, Any]) -> None:
        if callable(executor.grid) or any(isinstance(value, Tensor) for value in options.values()):
            raise Fault("the guard knows grids that are tuples, and tensors by position")
        self.launches += 1
        tensors = [(name, x) for name, x in zip(executor.arg_names, args, strict=False) if isinstance(x, Tensor)]
        storages = {x.untyped_storage().data_ptr(): x for _, x in tensors if x.numel()}
        known = {address: self._storage(x) for address, x in storages.items()}
        none = Storage(np.zeros(0, np.uint8), None)
        self._regions = [
            # Aligned as the tensor is.
            Region(name, x, (k << _SPACE) + (1 << (_SPACE - 1)) + x.data_ptr() % 4096, known.get(_start(x), none))
            for k, (name, x) in enumerate(tensors, 1)
        ]
        results = []
        before = [storage.data.copy() for storage in known.values()]
        name = executor.fn.__name__
        for _ in range(1 if name in self._repeated else 2):
            for storage, data in zip(known.values(), before, strict=True):
                storage.data[:] = data
                storage.forget()
            self._pointers = iter([region.base for region in self._regions])
            self._order = [*itertools.product(*map(range, executor.grid))]
            self._random.shuffle(self._order)
            self._program = 0
            run()
            results.append([storage.data.copy() for storage in known.values()])
        self._repeated.add(name)
        if not all(map(np.array_equal, results[0], results[-1])):
            raise Fault(f"{name}: programs in another order give other bits")

    def _storage(self, x: Tensor) -> Storage:
        storage = x.untyped_storage()
        data = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
        _, written = self._fresh.get(storage.data_ptr(), (None, None))
        return Storage(data, written)

    def _next_program(self) -> tuple[int, int, int]:
        index = self._order[self._program]
        self._program += 1
        self.programs += 1
        x, y, z = (*index, 0, 0)[:3]
        return x, y, z

    def _translated(self, pointers: Any, mask: Any, size: int) -> tuple[Any, list[tuple[Region, NDArray[np.int64]]]]:
        """Addresses in memory, and for each region where in its storage the elements are that the mask lets through."""
        addresses = np.asarray(pointers).copy()
        chosen = np.broadcast_to(np.asarray(mask, np.bool_), addresses.shape)
        space = np.where(chosen, addresses >> np.uint64(_SPACE), 0).astype(np.int64)
        found = []
        for k in np.unique(space[chosen]).tolist():
            if not 1 <= k <= len(self._regions):
                raise Fault(f"outside every tensor: program {self._order[self._program - 1]}")
            region, here = self._regions[k - 1], space == k
            places = region.places(addresses[here], size)
            addresses[here] = region.storage.data.ctypes.data + places.astype(np.uint64)
            found.append((region, places))
        return addresses, found

    def reading(self, pointers: Any, mask: Any, size: int) -> Any:
        addresses, found = self._translated(pointers, mask, size)
        for region, places in found:
            storage, me = region.storage, self._program
            self.loads += len(places)
            if storage.written is not None and not storage.written[places].all():
                raise Fault(f"{region.name}: {int((~storage.written[places]).sum())} loads of what nobody wrote")
            if not np.isin(storage.writer[places], (0, me)).all():
                raise Fault(f"{region.name}: read and written by different programs")
            readers = storage.reader[places]
            storage.reader[places] = np.where((readers == 0) | (readers == me), me, -1)
        return addresses

    def writing(self, pointers: Any, mask: Any, size: int) -> Any:
        addresses, found = self._translated(pointers, mask, size)
        for region, places in found:
            storage, me = region.storage, self._program
            self.stores += len(places)
            if len(np.unique(places)) < len(places):
                raise Fault(f"{region.name}: one store writes an element twice")
            for others, what in ((storage.writer, "written"), (storage.reader, "read and written")):
                if not np.isin(others[places], (0, me)).all():
                    raise Fault(f"{region.name}: {what} by different programs")
            storage.writer[places] = me
            if storage.written is not None:
                storage.written[places] = True
        return addresses


def _start(x: Tensor) -> int:
    return x.untyped_storage().data_ptr() if x.numel() else 0
