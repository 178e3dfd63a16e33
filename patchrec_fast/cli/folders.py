# SPDX-License-Identifier: Apache-2.0
"""The type of options that are folders: what is not there is said before anything is imported or looked for."""

import argparse
from collections.abc import Callable

from .._folders import check_folder


def folder(*words: str, hub: bool = False) -> Callable[[str], str]:
    """A folder that is there, or one of `words`; with `hub` also a model's name there, which is not looked up."""

    def parse(text: str) -> str:
        if text not in words:
            try:
                check_folder(text, hub=hub)
            except OSError as error:
                raise argparse.ArgumentTypeError(str(error)) from error
        return text

    return parse
