# SPDX-License-Identifier: Apache-2.0
"""The operators' definitions in plain PyTorch: readable, differentiable, any floating dtype, any device."""
