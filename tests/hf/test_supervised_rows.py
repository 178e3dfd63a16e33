# SPDX-License-Identifier: Apache-2.0
"""The loss on supervised rows, and who owns it."""

import pytest
import torch

import patchrec_fast as pf
from patchrec_fast.hf import attach
from patchrec_fast.hf.supervised import on_supervised_rows
from tests.hf.conftest import FAMILIES
from tests.hf.oracle import predicting


@pytest.fixture
def attached(make_model, pack):
    model, batch = make_model("llama"), pack(pf.ItemPatches(keep=2))
    attach(model)
    return model, batch


@pytest.mark.parametrize("family", FAMILIES)
def test_text_equals_transformers_own_loss(make_model, pack, family):
    """Vanilla fine-tuning: the same token ids, right-padded, through the untouched model and its own loss."""
    model, batch = make_model(family), pack(pf.Text())
    lengths = batch.cu_seqlens.diff().tolist()
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad(batch.ids.long().split(lengths), batch_first=True)
    labels = pad(batch.labels.split(lengths), batch_first=True, padding_value=-100)
    mask = pad([torch.ones(n, dtype=torch.long) for n in lengths], batch_first=True)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        attach(model)
        made = model(**batch.model_inputs()).loss
    # float32: a few hundred roundings of 6e-8 in logits, a mean of logarithms of them
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=0)


def test_the_head_sees_supervised_rows_only(attached):
    model, batch = attached
    seen = []
    model.lm_head.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    out = model(**batch.model_inputs())
    count = int((batch.labels != -100).sum())
    assert count < len(batch.labels) / 5
    assert seen == [(1, count, 32)]
    assert out.logits.shape == (1, count, model.config.vocab_size)


@pytest.mark.parametrize("count", [7, torch.tensor(7)])
def test_num_items_in_batch_divides_the_sum(attached, count):
    """As Trainer gives it with gradient accumulation."""
    model, batch = attached
    mean = model(**batch.model_inputs()).loss
    made = model(**batch.model_inputs(), num_items_in_batch=count).loss
    supervised = (batch.labels != -100).sum()
    torch.testing.assert_close(made, mean * supervised / 7)


def test_labels_alone_give_the_same(attached):
    """Without the rows that model_inputs found."""
    model, batch = attached
    inputs = batch.model_inputs()
    expected = model(**inputs).loss
    del inputs["supervised_rows"]
    assert torch.equal(model(**inputs).loss, expected)


@pytest.mark.parametrize("owner", ["fused_lm_head", "shift_labels", "logits_to_keep"])
def test_a_loss_with_an_owner_is_left_to_it(attached, owner):
    _, batch = attached
    assert set(on_supervised_rows(batch.model_inputs())) == {"logits_to_keep", "shift_labels"}
    assert on_supervised_rows({**batch.model_inputs(), owner: None}) == {}


def test_trl_gets_full_length_labels(attached):
    """It passes fused_lm_head and shifts the labels itself."""
    model, batch = attached
    seen = {}
    model.lm_head.register_forward_pre_hook(lambda module, args: seen.update(rows=args[0].shape[1]))
    out = model(**batch.model_inputs(), fused_lm_head=False)
    assert seen == {"rows": len(batch.labels)}
    torch.testing.assert_close(out.loss, model(**batch.model_inputs()).loss, rtol=1e-5, atol=0)


def test_a_callers_own_rows(attached):
    model, batch = attached
    inputs = batch.model_inputs()
    inputs.pop("labels")
    out = model(**inputs, logits_to_keep=torch.tensor([3, 5]))
    assert out.logits.shape[1] == 2


def test_a_users_first_row_is_nobodys_target(pack):
    """Its predecessor is another user's last row."""
    batch = pack(pf.Text())
    labels = batch.labels.clone()
    labels[batch.cu_seqlens[:-1].long()] = 5
    everywhere = type(batch)(**{**vars(batch), "labels": labels})
    assert torch.equal(everywhere.model_inputs()["labels"][0], batch.labels)
    assert torch.equal(everywhere.model_inputs()["supervised_rows"], predicting(batch))


def test_model_inputs_without_targets(pack):
    inputs = pack(pf.Text(), targets=False).model_inputs()
    assert not {"labels", "supervised_rows", "plan"} & set(inputs)
    assert inputs["use_cache"] is False
    assert next(iter(inputs.values())).shape[0] == 1  # the batch size that Trainer reads


def test_model_inputs_of_a_moved_batch_ask_the_device_nothing_about_ids(pack):
    inputs = pack(pf.Text(), targets=False).to("meta").model_inputs()
    assert "max_id" not in inputs
    assert inputs["ids"].device.type == "meta"


def test_the_loss_of_bfloat16_is_float32(make_model, pack):
    model, batch = make_model("llama").bfloat16(), pack(pf.Text())
    attach(model)
    assert model(**batch.model_inputs()).loss.dtype == torch.float32
