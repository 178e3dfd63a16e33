# SPDX-License-Identifier: Apache-2.0
"""Text from outside, on one line and without what a terminal or a browser would obey; what is spelt like it."""

import re
from collections.abc import Callable, Iterable

# Control characters, line and paragraph separators, lone surrogates, and what is invisible or turns the direction of
# the text around it. The two joiners stay: Persian, Indic scripts and emoji are spelt with them.
_OBEYED = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


def printable(text: str) -> str:
    r"""The text with such characters as escapes, such as `\x1b`, `\n` and `\u202e`; any other stays."""
    return _OBEYED.sub(lambda found: repr(found[0])[1:-1], text)


def near(word: str, known: Iterable[str], shown: Callable[[str], str] = repr) -> str:
    """What a message ends with where a word is not one of those known: ", did you mean 'a' or 'b'?", or nothing."""
    import difflib

    found = difflib.get_close_matches(word, list(known), n=3)
    return f", did you mean {' or '.join(map(shown, found))}?" if found else ""
