# SPDX-License-Identifier: Apache-2.0
"""Text files read in blocks of whole lines, so that memory does not grow with the file.

A block is parsed at once by Arrow; where Arrow refuses it, the reader goes through its `lines`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .interactions import Progress
from .rawfile import Bytes

BLOCK = 1 << 24  # bytes
_LONGEST_LINE = 1 << 26
_SHOWN = 80


class Block(NamedTuple):
    """Whole lines of a file."""

    path: Path
    line: int  # the number of the first line, from 1
    text: bytes


def blocks(path: Path, progress: Progress, size: int = BLOCK) -> Iterator[Block]:
    """The lines of a file, plain or `.gz`, in blocks of about `size` bytes.

    Only the last block may lack the newline at its end.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a compressed file that is cut short or damaged, or a line of over 64 MiB.
    """
    line, carry = 1, b""
    with Bytes(path, progress) as file:
        while read := file.read(size):
            text = carry + read
            end = text.rfind(b"\n") + 1
            if end:
                yield Block(path, line, text[:end])
                line += text.count(b"\n", 0, end)
            carry = text[end:]
            if len(carry) > _LONGEST_LINE:
                raise ValueError(f"{path}: line {line} is longer than 64 MiB")
    if carry:
        yield Block(path, line, carry)


def lines(block: Block) -> Iterator[tuple[int, bytes]]:
    """Number and text of every line."""
    yield from enumerate((line.removesuffix(b"\r") for line in block.text.removesuffix(b"\n").split(b"\n")), block.line)


def bad_line(path: Path, number: int, text: bytes, wrong: str) -> ValueError:
    """The error for a line: its number, its beginning, what is wrong."""
    shown = text[:_SHOWN].decode(errors="backslashreplace")
    return ValueError(f"{path}: line {number} is {shown!r}, {wrong}")


def check_end(block: Block) -> None:
    """Refuses a last line without a newline: its last number may have lost digits.

    Raises:
        ValueError: the block does not end with a newline.
    """
    if not block.text.endswith(b"\n"):
        last = block.line + block.text.count(b"\n")
        raise ValueError(f"{block.path}: line {last} does not end with a newline, the file may be cut short")
