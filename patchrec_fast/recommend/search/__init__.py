# SPDX-License-Identifier: Apache-2.0
"""How titles are searched: each a function of a `DecodeState`, or of prompts that have been read."""
