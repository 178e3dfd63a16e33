# SPDX-License-Identifier: Apache-2.0
"""TRL's SFTTrainer on packed batches, beside gradient descent in float64 on each user alone (`oracle.py`).

TRL replaces the model's forward by one with a loss of its own, which shifts the labels of all rows.
"""

import copy

import pytest

import patchrec_fast as pf
from patchrec_fast import data
from patchrec_fast.hf import attach
from tests.hf.oracle import alone

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

STEPS, USERS, RATE = 2, 3, 0.5


@pytest.fixture
def fit(sample, tmp_path):
    """fit(model, share): SFTTrainer's losses, and the batches that it took, packed whole."""

    def run(model, share=False):
        policy, batches = pf.SessionPatches(group=2), []
        whole, packer = (pf.Packer(sample.catalogue, sample.prompt, policy, share=shares) for shares in (False, share))
        users = [sample.dataset.items[start : start + 8].tolist() for start in range(STEPS * USERS)]

        def collate(samples):
            histories = [sample["items"][:-1] for sample in samples]
            targets = [sample["items"][-1] for sample in samples]
            batches.append(whole.pack(histories, targets))
            return packer.pack(histories, targets).model_inputs()

        args = trl.SFTConfig(
            output_dir=str(tmp_path),
            max_steps=STEPS,
            per_device_train_batch_size=USERS,
            optim="sgd",
            learning_rate=RATE,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            remove_unused_columns=False,
            max_length=None,
            padding_free=False,
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        trainer = trl.SFTTrainer(
            model,
            args=args,
            train_dataset=datasets.Dataset.from_list([{"items": items} for items in users]),
            data_collator=collate,
            processing_class=data.sample_tokenizer(sample.dataset.titles.values()),
        )
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], batches[:STEPS]

    return run


def descend(model, batches):
    """Losses of plain gradient descent in float64, and the model that it ends with."""
    model, losses = copy.deepcopy(model).double(), []
    for batch in batches:
        step = alone(model, batch)
        losses.append(step.loss.item())
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.data -= RATE * step.gradients[name]
    return losses, model


@pytest.mark.parametrize(
    ("adapted", "loss", "share"), [(False, "auto", False), (True, "chunked", False), (True, "auto", True)]
)
def test_sft_trains_as_users_alone_would(make_model, fit, adapted, loss, share):
    """TRL's forward runs, whatever loss was asked of ours."""
    model = make_model("llama")
    if adapted:
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"]))
    model.train()
    untouched = copy.deepcopy(model)
    attach(model, loss=loss)
    losses, batches = fit(model, share)
    expected, trained = descend(untouched, batches)
    assert len(losses) == STEPS
    assert losses == pytest.approx(expected, rel=1e-5)
    before = dict(untouched.named_parameters())
    after = dict(trained.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            moved = after[name] - before[name].double()
            error = (parameter.double() - after[name]).norm()
            assert error <= 1e-4 * moved.norm() + 2.0**-23 * after[name].norm(), name


def test_its_loss_is_ours(make_model, fit):
    model = make_model("llama").train()
    ours = copy.deepcopy(model)
    attach(model)
    attach(ours)
    losses, batches = fit(model)
    assert losses[0] == pytest.approx(ours(batches[0]).loss.item(), rel=1e-5)
