# SPDX-License-Identifier: Apache-2.0
"""What each of two processes runs under DeepSpeed: `torchrun --nproc-per-node 2 -m tests.train.zero3 FOLDER`."""

import sys
from pathlib import Path

import deepspeed
import numpy as np
import torch
from deepspeed.utils import safe_get_full_grad
from torch import distributed as dist

from patchrec_fast.hf.attach import _embed
from patchrec_fast.hf.modules import serves
from tests.train.conftest import make_sample, make_tiny
from tests.train.ranks import PARTS, plan

CONFIG = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": PARTS // 2,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "zero_allow_untested_optimizer": True,
}


def gradients(sample, rank):
    """As `ranks.gradients`, of parameters that ZeRO-3 keeps in shards; how many numbers this process holds whole, and
    whether the embedding is still the fused operator."""
    model = make_tiny(sample.prompt)
    batches = plan(sample, 2)
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.SGD(model.parameters(), 0.1), config=CONFIG)
    whole = sum(weight.numel() for weight in model.parameters())
    fused = serves(model.get_input_embeddings(), _embed)
    mine = [batches[number] for number in range(len(batches) - PARTS + rank, len(batches), 2)]
    count = torch.stack([(batch["labels"] != -100).sum() for batch in mine]).sum()
    dist.all_reduce(count)
    total = torch.zeros(())
    for batch in mine:
        loss = engine(**batch, num_items_in_batch=count).loss
        engine.backward(loss * PARTS)  # DeepSpeed means over processes and over the parts that accumulate
        total += loss.detach()
        if batch is not mine[-1]:
            engine.step()
    dist.all_reduce(total)
    found = {name: safe_get_full_grad(weight).numpy() for name, weight in model.named_parameters()}
    return {"loss": total.numpy(), "whole": np.array(whole), "fused": np.array(fused), **found}


if __name__ == "__main__":
    deepspeed.init_distributed("gloo")
    rank = dist.get_rank()
    np.savez(Path(sys.argv[1]) / f"zero3-{rank}.npz", **gradients(make_sample(), rank))
    dist.destroy_process_group()
