# SPDX-License-Identifier: Apache-2.0
"""What each of two processes runs: `torchrun --nproc-per-node 2 -m tests.train.ranks FOLDER`.

The same functions run in one process give the reference.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import distributed as dist
from torch.distributed.fsdp import fully_shard
from transformers import Trainer, TrainingArguments

from patchrec_fast.train import Guard, MicroBatches, stage, trainer_arguments
from tests.train.conftest import make_sample, make_tiny

PARTS = 4  # micro-batches of a step


def plan(sample, world_size):
    return MicroBatches(
        sample.train,
        sample.packer,
        stage("pretrain"),
        sequences=3,
        accumulation=PARTS // world_size,
        world_size=world_size,
        steps=4,
    )


def with_trainer(sample, world_size, folder):
    """Weights after four steps, the losses logged, the validation loss, the number of ids of each forward."""
    batches = plan(sample, world_size)
    evaluation = MicroBatches(
        sample.val, sample.packer, stage("text"), sequences=4 // world_size, world_size=world_size, evaluation=True
    )
    model = make_tiny(sample.prompt)
    seen = []

    def look(model, _, inputs):
        if model.training:
            seen.append(len(inputs["ids"]))

    model.register_forward_pre_hook(look, with_kwargs=True, prepend=True)
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
        optim="sgd",
        learning_rate=0.1,
        max_grad_norm=1.0,
        **trainer_arguments(batches),
    )
    trainer = Trainer(
        model,
        arguments,
        data_collator=batches.collate,
        train_dataset=batches,
        eval_dataset=evaluation,
        callbacks=[Guard(batches)],
    )
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {
        "losses": np.array(losses),
        "validation": np.array(trainer.evaluate()["eval_loss"]),
        "seen": np.array(seen),
        **{name: weight.detach().numpy() for name, weight in model.named_parameters()},
    }


def sharded(sample, world_size, rank):
    """Gradients of the last step's micro-batches of this process under FSDP2, gathered, and the loss of all."""
    batches = plan(sample, world_size)
    model = make_tiny(sample.prompt)
    if world_size > 1:
        for module in (model.model.embed_tokens, *model.model.layers, model):
            fully_shard(module)
    first = len(batches) - PARTS + rank
    mine = [batches[number] for number in range(first, len(batches), world_size)]
    count = torch.stack([(batch["labels"] != -100).sum() for batch in mine]).sum()
    loss = torch.zeros(())
    if world_size > 1:
        dist.all_reduce(count)
    for batch in mine:
        part = model(**batch, num_items_in_batch=count).loss
        (part * world_size).backward()  # FSDP2 means over processes
        loss += part.detach()
    if world_size > 1:
        dist.all_reduce(loss)
    gradients = {
        name: weight.grad.full_tensor() if world_size > 1 else weight.grad for name, weight in model.named_parameters()
    }
    return {"loss": loss.numpy(), **{name: gradient.numpy() for name, gradient in gradients.items()}}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    sample = make_sample()
    trained = with_trainer(sample, 2, folder)  # starts the process group
    rank = dist.get_rank()
    np.savez(folder / f"trainer-{rank}.npz", **trained)
    np.savez(folder / f"sharded-{rank}.npz", **sharded(sample, 2, rank))
    dist.destroy_process_group()
