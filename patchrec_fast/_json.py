# SPDX-License-Identifier: Apache-2.0
"""JSON files of other programs: every error names the file."""

import json
import os
from pathlib import Path
from typing import Any


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object that a file holds.

    Raises:
        OSError: no such file, or none that can be read.
        ValueError: not JSON, or no object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content
