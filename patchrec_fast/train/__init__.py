# SPDX-License-Identifier: Apache-2.0
"""Training stages for stock trainers. Importing this does not import transformers."""
