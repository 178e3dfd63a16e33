# SPDX-License-Identifier: Apache-2.0
"""Hugging Face causal language models on packed batches. Importing this does not import transformers."""

from .attach import Attachment as Attachment
from .attach import attach as attach
