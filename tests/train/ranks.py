# SPDX-License-Identifier: Apache-2.0
"""What each of two processes runs: `torchrun --nproc-per-node 2 -m tests.train.ranks FOLDER`.

The same functions run in one process give the reference.
"""

import copy
import sys
from pathlib import Path

import numpy as np
import torch
from torch import distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import LlamaForCausalLM, Trainer, TrainingArguments
from transformers.distributed import DistributedConfig

import patchrec_fast as pf
from patchrec_fast.train import Guard, MicroBatches, passes, stage, trainer_arguments
from tests.train.conftest import make_sample, make_tiny

PARTS = 4  # micro-batches of a step


def plan(sample, world_size, by):
    packer = copy.copy(sample.packer)
    packer.share = True
    by_user = by == "user"
    return MicroBatches(
        passes(sample.dataset, "train", 5).some(120) if by_user else sample.train,
        packer,
        stage("pretrain"),
        **({"rows": 1500} if by_user else {"sequences": 3}),
        accumulation=PARTS // world_size,
        world_size=world_size,
        steps=4,
    )


def with_trainer(sample, world_size, folder, model, by="prompt"):
    """Weights after four steps, the losses logged, the validation loss, the number of ids of each forward."""
    batches = plan(sample, world_size, by)
    evaluation = MicroBatches(
        sample.val, sample.packer, stage("text"), sequences=4 // world_size, world_size=world_size, evaluation=True
    )
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
        **{name: whole(weight.detach()).numpy() for name, weight in model.named_parameters()},
    }


def gradients(sample, world_size, rank, by="prompt"):
    """Gradients of the last step's micro-batches of this process under FSDP2, gathered, and the loss of all."""
    batches = plan(sample, world_size, by)
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
    return {"loss": loss.numpy(), **{name: whole(weight.grad).numpy() for name, weight in model.named_parameters()}}


def whole(tensor):
    """A sharded tensor, gathered."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_when_loaded(sample, rank, folder):
    """The same tiny model, sharded by transformers, or None where this release's trainer would wrap it in DDP."""
    if not hasattr(Trainer, "_sync_replicated_trainable_parameters"):
        return None
    if rank == 0:
        make_tiny(sample.prompt).save_pretrained(folder)
    dist.barrier()
    config = DistributedConfig(fsdp_size=2)
    model = LlamaForCausalLM.from_pretrained(folder, distributed_config=config, dtype=torch.float32)
    pf.attach(model)
    return model


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    sample = make_sample()
    ddp = with_trainer(sample, 2, folder, make_tiny(sample.prompt))  # starts the process group
    rank = dist.get_rank()
    np.savez(folder / f"ddp-prompt-{rank}.npz", **ddp)
    ddp = with_trainer(sample, 2, folder, make_tiny(sample.prompt), "user")
    np.savez(folder / f"ddp-user-{rank}.npz", **ddp)
    for by in ("prompt", "user"):
        np.savez(folder / f"gradients-{by}-{rank}.npz", **gradients(sample, 2, rank, by))
    model = sharded_when_loaded(sample, rank, folder / "model")
    if model is not None:
        np.savez(folder / f"fsdp2-prompt-{rank}.npz", **with_trainer(sample, 2, folder, model))
    dist.destroy_process_group()
