# SPDX-License-Identifier: Apache-2.0
"""A stock Trainer on micro-batches: what it sees, its loss and gradients, resuming, and the guard."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

import patchrec_fast as pf
from patchrec_fast.train import Guard, MicroBatches, stage, trainer_arguments


@pytest.fixture
def batches(sample):
    def make(name="pretrain", **options):
        options = {"sequences": 3, "accumulation": 2, "steps": 8, **options}
        return MicroBatches(sample.train, sample.packer, stage(name, keep=2, group=2), **options)

    return make


@pytest.fixture
def make_trainer(tmp_path):
    def make(model, batches, callbacks=(), evaluation=None, **options):
        options = {
            "output_dir": str(tmp_path),
            "use_cpu": True,
            "report_to": [],
            "save_strategy": "no",
            "disable_tqdm": True,
            "logging_steps": 1,
            **options,
        }
        return Trainer(
            model,
            TrainingArguments(**trainer_arguments(batches), **options),
            data_collator=batches.collate,
            train_dataset=batches,
            eval_dataset=evaluation,
            callbacks=[Guard(batches), *callbacks],
        )

    return make


class Seen(TrainerCallback):
    """The ids of each training forward."""

    def __init__(self, model):
        self.ids = []
        model.register_forward_pre_hook(self.look, with_kwargs=True, prepend=True)

    def look(self, model, args, kwargs):
        if model.training:
            self.ids.append(kwargs["ids"].tolist())


class At(TrainerCallback):
    """Does something before one optimizer step."""

    def __init__(self, step, what):
        self.step, self.what = step, what

    def on_step_begin(self, args, state, control, model, **_):
        if state.global_step == self.step:
            self.what(model, control)


class StopAfter(TrainerCallback):
    """Saves after `steps` optimizer steps, and stops."""

    def __init__(self, steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = control.should_save = state.global_step == self.steps


def spoil(model, control):
    model.lm_head.weight.data[3] = torch.nan


def weights(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_trainer_reads_all_batches_in_order(batches, make_trainer, tiny, workers, accumulation):
    planned = batches(accumulation=accumulation, steps=4)
    model = tiny()
    seen = Seen(model)
    trainer = make_trainer(model, planned, [seen], dataloader_num_workers=workers)
    trainer.train()
    assert trainer.state.global_step == planned.optimizer_steps == 4
    assert seen.ids == [batch["ids"].tolist() for batch in planned]


@pytest.mark.parametrize("name", ["text", "pft-s", "pretrain"])
def test_a_step_is_the_mean_over_all_its_tokens(batches, make_trainer, sample, tiny, name):
    """Against autograd on each sequence alone: the sum of all losses over the number of all targets."""
    planned = batches(name, accumulation=3, steps=1, sequences=5)
    model = tiny().double()
    before = weights(model)
    trainer = make_trainer(
        model, planned, optim="sgd", learning_rate=1.0, lr_scheduler_type="constant", max_grad_norm=0
    )
    trainer.train()
    after = weights(model)

    reference = tiny().double()
    total, count, counts = 0.0, 0, []
    for inputs in planned:
        labels = inputs["labels"][0]
        for first, last in zip(inputs["cu_seq_lens_q"][:-1], inputs["cu_seq_lens_q"][1:], strict=True):
            rows = pf.compress(
                inputs["ids"], (inputs["token_offsets"], inputs["item_offsets"]), reference.model.embed_tokens.weight
            )[first:last]
            logits = reference(inputs_embeds=rows.unsqueeze(0)).logits[0, :-1]
            targets = labels[first + 1 : last]
            total = total + torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
            count += int((targets != -100).sum())
        counts.append(int((labels != -100).sum()))
    assert len(set(counts)) > 1, "micro-batches of equal weight would prove nothing"
    (total / count).backward()
    loss = (total / count).item()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss, rel=1e-6)  # transformers sums it in float32
    for weight_name, weight in reference.named_parameters():
        torch.testing.assert_close(before[weight_name] - after[weight_name], weight.grad, rtol=1e-5, atol=1e-7)


def test_two_runs_of_one_seed_are_one(batches, make_trainer, tiny):
    ends = []
    for seed in (1, 1, 2):
        model = tiny(attention_dropout=0.0)
        make_trainer(model, batches(seed=seed), learning_rate=1e-2).train()
        ends.append(weights(model))
    assert equal(ends[0], ends[1])
    assert not equal(ends[0], ends[2])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
def test_a_resumed_run_is_the_run(batches, make_trainer, tiny, optim, workers, tmp_path):
    options = {"optim": optim, "learning_rate": 1e-2, "dataloader_num_workers": workers, "save_strategy": "steps"}
    options |= {"save_steps": 100}
    whole = tiny()
    make_trainer(whole, batches(epochs=2), output_dir=str(tmp_path / "whole"), **options).train()

    cut = tiny()
    make_trainer(cut, batches(epochs=2), [StopAfter(3)], **options).train()
    assert not equal(weights(cut), weights(whole))
    resumed = tiny()
    seen = Seen(resumed)
    make_trainer(resumed, batches(epochs=2), [seen], **options).train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-3")
    )
    assert len(seen.ids) == 2 * 5
    assert equal(weights(resumed), weights(whole))


def test_validation_loss(batches, make_trainer, sample, tiny):
    planned = batches("pretrain", steps=2)
    evaluation = MicroBatches(sample.val, sample.packer, planned.stage, sequences=8, evaluation=True)
    model = tiny()
    trainer = make_trainer(model, planned, evaluation=evaluation)
    got = trainer.evaluate()["eval_loss"]
    model.eval()
    with torch.no_grad():
        losses = [float(model(**batch).loss) for batch in evaluation]
    assert len(losses) == 4
    assert got == pytest.approx(np.mean(losses), rel=1e-6)


def test_the_guard_stops_before_the_weights_are_spoilt(batches, make_trainer, tiny, tmp_path):
    planned = batches()
    model = tiny()
    kept = {}

    def spoil_and_keep(model, control):
        spoil(model, control)
        kept.update(weights(model))

    with pytest.raises(FloatingPointError, match=r"micro-batch 6 \(optimizer step 3, samples \d+, ") as error:
        make_trainer(model, planned, [At(3, spoil_and_keep)], learning_rate=1e-2).train()
    assert all(torch.equal(kept[name].nan_to_num(), weight.nan_to_num()) for name, weight in weights(model).items())
    assert not model._forward_hooks
    [path] = tmp_path.glob("*.npz")
    assert str(path) in str(error.value)
    saved, expected = np.load(path, allow_pickle=False), planned[6]
    assert saved["samples"].tolist() == planned.describe(6).samples.tolist()
    for name in ("ids", "token_offsets", "item_offsets", "cu_seq_lens_q", "position_ids", "labels"):
        assert saved[name].tolist() == expected[name].tolist()


@pytest.mark.parametrize("event", ["log", "save", "eval"])
def test_on_a_device_the_guard_looks_before_the_trainer_waits(
    batches, make_trainer, sample, tiny, monkeypatch, tmp_path, event
):
    """As on a GPU: without the look before each optimizer step, which would wait for it."""
    monkeypatch.setattr(Guard, "on_pre_optimizer_step", TrainerCallback.on_pre_optimizer_step)
    evaluation = MicroBatches(sample.val, sample.packer, stage("text"), sequences=8, evaluation=True)
    options = {"logging_steps": 100, f"{event}_strategy": "steps", f"{event}_steps": 4}
    if event == "log":
        options = {"logging_steps": 4}
    counted = []
    callbacks = [At(1, spoil)] + [At(step, lambda *_: counted.append(1)) for step in range(8)]
    with pytest.raises(FloatingPointError, match=r"micro-batch 2 \(optimizer step 1, "):
        make_trainer(tiny(), batches(), callbacks, evaluation, **options).train()
    assert len(counted) == 4
    assert not list(tmp_path.glob("checkpoint-*"))


def test_the_guard_looks_at_the_end(batches, make_trainer, tiny, monkeypatch):
    monkeypatch.setattr(Guard, "on_pre_optimizer_step", TrainerCallback.on_pre_optimizer_step)
    with pytest.raises(FloatingPointError, match="micro-batch 15"):
        make_trainer(tiny(), batches(accumulation=1, steps=16), [At(15, spoil)], logging_steps=100).train()


def test_the_guard_counts_on_after_resuming(batches, make_trainer, tiny, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 4}
    make_trainer(tiny(), batches(), **options).train()
    checkpoint = str(tmp_path / "checkpoint-4")
    with pytest.raises(FloatingPointError, match=r"micro-batch 12 \(optimizer step 6, "):
        make_trainer(tiny(), batches(), [At(6, spoil)], **options).train(resume_from_checkpoint=checkpoint)


def test_the_guard_names_the_batch_of_its_process(batches, tiny, tmp_path):
    """The second forward of the third step in the second of two processes."""
    model = tiny()
    guard = Guard(batches(world_size=2))
    state = SimpleNamespace(max_steps=8, global_step=2)
    arguments = SimpleNamespace(
        torch_compile=False,
        gradient_accumulation_steps=2,
        world_size=2,
        process_index=1,
        device=torch.device("cpu"),
        output_dir=str(tmp_path),
    )
    control = SimpleNamespace()
    guard.on_train_begin(arguments, state, control, model)
    guard.on_step_begin(arguments, state, control)
    model.train()
    model(**batches()[0])
    guard.on_pre_optimizer_step(arguments, state, control)
    model.eval()
    model(**batches()[0])  # validation does not count
    spoil(model, control)
    model(**batches()[0])
    guard.on_pre_optimizer_step(arguments, state, control)
    model.train()
    model(**batches()[0])
    with pytest.raises(FloatingPointError, match=r"micro-batch 11 \(optimizer step 2, "):
        guard.on_pre_optimizer_step(arguments, state, control)


def test_without_the_guard_a_bad_loss_is_logged(batches, make_trainer, tiny):
    trainer = make_trainer(tiny(), batches(), [At(6, spoil)])
    trainer.remove_callback(Guard)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert np.isnan(losses).tolist() == 6 * [False] + 2 * [True]


def test_the_guard_refuses_a_run_of_other_steps(batches, make_trainer, tiny):
    with pytest.raises(ValueError, match=r"the trainer has 3 optimizer steps, .* planned for 8 .*steps=\.\.\."):
        make_trainer(tiny(), batches(), max_steps=3).train()
