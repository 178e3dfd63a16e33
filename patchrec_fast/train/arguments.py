# SPDX-License-Identifier: Apache-2.0
"""What transformers' TrainingArguments must say for micro-batches."""

from __future__ import annotations

from typing import Any

import torch

from .batches import MicroBatches


def trainer_arguments(batches: MicroBatches) -> dict[str, Any]:
    """The arguments that a stock `Trainer` needs, and no other.

        arguments = TrainingArguments("out", learning_rate=1e-5, **trainer_arguments(batches))
        Trainer(model, arguments, data_collator=batches.collate, train_dataset=batches).train()

    The epochs are in `batches`, so the trainer sees one. Its loss and gradients are means over the supervised
    tokens of all processes and of all accumulated micro-batches. `eval_loss` is the trainer's own: the mean over
    batches of each batch's mean over tokens.
    """
    copied = torch.accelerator.is_available()  # batches are, from pinned memory, while the device computes
    return {
        "per_device_train_batch_size": 1,
        "per_device_eval_batch_size": 1,
        "gradient_accumulation_steps": batches.accumulation,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "accelerator_config": {"split_batches": False, "dispatch_batches": False, "non_blocking": copied},
        "dataloader_pin_memory": copied,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "prediction_loss_only": True,  # logits of packed batches have no common shape
        "average_tokens_across_devices": True,
        "logging_nan_inf_filter": False,  # it waits for the device each micro-batch, and hides a loss of NaN
    }
