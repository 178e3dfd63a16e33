# SPDX-License-Identifier: Apache-2.0
"""The attention implementation that configurations name, while models are attached.

Models may share a configuration object, and be attached and detached in any order. So a configuration gets back the
name it had when the last of its models is detached. Whether a model is attached is not read off here: its hook says so
(`patchrec_fast.hf.attach.is_attached`), for copies of a configuration share the name and not the hook.
"""

from contextlib import ExitStack
from threading import RLock
from typing import Any

_guard = RLock()
_held: dict[int, "_Held"] = {}  # by id, for configurations compare by value; each is kept alive by its entry


class _Held:
    """A configuration, the name it had, and how many attached models have it."""

    def __init__(self, config: Any) -> None:
        self.config, self.before, self.models = config, config._attn_implementation_internal, 0


def hold(config: Any, undo: ExitStack) -> None:
    """A model with this configuration is attached until `undo` is closed.

    Args:
        config: as it was before the model's attention was set.
    """
    with _guard:
        _held.setdefault(id(config), _Held(config)).models += 1
    undo.callback(_release, config)


def _release(config: Any) -> None:
    with _guard:
        held = _held[id(config)]
        held.models -= 1
        if not held.models:
            del _held[id(config)]
            config._attn_implementation_internal = held.before


def in_use(config: Any) -> str | None:
    """The implementation by which another attached model has this configuration; None where none has."""
    with _guard:
        return config._attn_implementation_internal if id(config) in _held else None
