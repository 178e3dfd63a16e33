# SPDX-License-Identifier: Apache-2.0
"""pyarrow, imported where it is needed and not before."""

from types import ModuleType


def arrow() -> tuple[ModuleType, ModuleType]:
    """`pyarrow` and `pyarrow.parquet`.

    Raises:
        ImportError: not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("reading and writing tables needs pyarrow: pip install pyarrow") from error
    return pyarrow, pyarrow.parquet
