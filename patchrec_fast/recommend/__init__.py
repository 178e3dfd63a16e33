# SPDX-License-Identifier: Apache-2.0
"""Next items from a language model: decoding constrained to the titles of the catalogue."""
