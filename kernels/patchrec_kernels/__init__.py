# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of patchrec_fast, one file per op. Needs torch and triton only."""
