# SPDX-License-Identifier: Apache-2.0
"""The README's code runs as printed, top to bottom, with a tiny model in place of the one it downloads."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"
DOWNLOAD = 'AutoModelForCausalLM.from_pretrained("meta-llama/Llama-3.2-1B-Instruct")'
TINY = (
    "AutoModelForCausalLM.from_config(__import__('transformers').LlamaConfig(hidden_size=16, intermediate_size=16, "
    "num_hidden_layers=1, num_attention_heads=2, vocab_size=64))"
)


def test_code_blocks():
    pytest.importorskip("tokenizers")
    text = README.read_text()
    loop, call, *rest = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert DOWNLOAD in text
    embedding = torch.nn.Embedding(50, 8)
    model = type("Model", (), {"embed_tokens": embedding})
    sessions = [[torch.tensor([1, 2, 3]), torch.tensor([4])], [torch.tensor([5, 6])]]
    tensors = {
        "ids": torch.tensor([1, 2, 3, 4, 5, 6]),
        "token_offsets": torch.tensor([0, 3, 4, 6]),
        "item_offsets": torch.tensor([0, 2, 3]),
    }
    names = {"torch": torch, "model": model, "sessions": sessions, **tensors}
    exec(loop, names)
    before = names["embeddings"]
    exec(call, names)
    torch.testing.assert_close(names["embeddings"], before)
    for block in rest:
        exec(block.replace(DOWNLOAD, TINY), names)
    assert all(parameter.grad is not None for parameter in names["model"].parameters())
