# SPDX-License-Identifier: Apache-2.0
"""The collator of one's own rows."""

import copy
import pickle

import pytest
import torch
from transformers import Trainer, TrainingArguments

import patchrec_fast as pf
from patchrec_fast.train import Collator

FIELDS = ("ids", "token_offsets", "item_offsets", "position_ids", "cu_seq_lens_q", "labels")


@pytest.fixture
def rows(sample):
    (flat, offsets), targets = sample.train
    return [
        {"history": flat[offsets[place] : offsets[place + 1]].tolist(), "target": int(targets[place]), "user": place}
        for place in range(30)
    ]


def with_policy(sample, policy):
    packer = copy.copy(sample.packer)
    packer.policy = policy
    return packer


def test_rows_are_packed(sample, rows):
    packer = with_policy(sample, pf.ItemPatches(2))
    collate = pickle.loads(pickle.dumps(Collator(packer)))
    expected = packer.pack([row["history"] for row in rows], [row["target"] for row in rows]).model_inputs()
    found = collate(rows)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in FIELDS)


def test_other_columns_and_no_targets(sample, rows):
    renamed = [{"seen": row["history"], "next": row["target"]} for row in rows]
    assert torch.equal(
        Collator(sample.packer, "seen", "next")(renamed)["labels"], Collator(sample.packer)(rows)["labels"]
    )
    assert "labels" not in Collator(sample.packer)([{"history": row["history"]} for row in rows])


def test_random_patches_follow_torchs_seed(sample, rows):
    collate = Collator(with_policy(sample, pf.RandomItemPatches(0.5)))
    torch.manual_seed(3)
    first, second = collate(rows)["token_offsets"], collate(rows)["token_offsets"]
    torch.manual_seed(3)
    assert torch.equal(collate(rows)["token_offsets"], first)
    assert second.tolist() != first.tolist()


def test_wrong_rows_are_named(sample, rows):
    collate = Collator(sample.packer)
    missing = [{"user": 1}, *rows]
    with pytest.raises(ValueError, match=r"'history' in each, .* got \['history', 'target', 'user'\]; .*remove_unused"):
        collate(missing)
    with pytest.raises(ValueError, match="'target' in all or in none"):
        collate([{"history": [1, 2]}, *rows])
    with pytest.raises(ValueError, match="no users"):
        collate([])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stock_trainer_learns_a_dataset(sample, rows, tiny, tmp_path, workers):
    """The loss of the first step is the mean over its tokens, and falls."""
    datasets = pytest.importorskip("datasets")
    model = tiny()
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
        per_device_train_batch_size=5,
        gradient_accumulation_steps=6,
        num_train_epochs=6,
        learning_rate=1e-2,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_num_workers=workers,
    )
    expected = tiny()(**Collator(sample.packer)(rows)).loss.item()
    dataset = datasets.Dataset.from_list(rows)
    trainer = Trainer(model, arguments, data_collator=Collator(sample.packer), train_dataset=dataset)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[0] == pytest.approx(expected, rel=1e-5)
    assert losses[-1] < losses[0] - 0.5
