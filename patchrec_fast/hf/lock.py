# SPDX-License-Identifier: Apache-2.0
"""One lock a model, for what cannot be done on it twice at a time.

A lock is kept beside the model, not on it or on who uses it, so that both are copied and pickled without it, and all
who use the model meet at one.
"""

import os
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

from .modules import inner_of

_guard = RLock()
_locks: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def exclusive(model: Any) -> Any:
    """The model's lock, a context manager; a thread that has it may take it again. PEFT's model has its base's."""
    with _guard:
        return _locks.setdefault(inner_of(model), RLock())


def _renew() -> None:
    """In a forked process nobody is left who could give a lock back."""
    global _guard
    _guard = RLock()
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
