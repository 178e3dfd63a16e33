# SPDX-License-Identifier: Apache-2.0
"""The `patchrec-fast` command."""
