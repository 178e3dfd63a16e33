# SPDX-License-Identifier: Apache-2.0
"""A model whose logits are never made, and when it makes them after all."""

import copy
import inspect

import pytest
import torch

import patchrec_fast as pf
from patchrec_fast.hf import attach, supervised
from patchrec_fast.ops import cross_entropy
from tests.hf.conftest import WIDE_FAMILIES
from tests.hf.oracle import alone, assert_same_step, packed
from tests.hf.test_detach import assert_equal, snapshot

EXACT = sorted({*WIDE_FAMILIES} - {"gemma2", "granite"})


@pytest.fixture(autouse=True)
def blocks(monkeypatch):
    """Several to a call: a row has 300 logits and more."""
    monkeypatch.setattr(cross_entropy, "BLOCK", 1000)
    monkeypatch.setattr(cross_entropy, "WORDS", 1)


@pytest.fixture
def batch(pack):
    return pack(pf.SessionPatches(group=2), users=3)


def count_of(batch):
    return int((batch.labels != -100).sum())


@pytest.mark.parametrize("family", EXACT)
def test_a_step_equals_each_user_alone(make_model, batch, family):
    model = make_model(family)
    exact = alone(model, batch)
    attach(model, loss="chunked")
    made = packed(model, batch)
    assert made.logits is None
    assert_same_step(made, exact, batch)
    with torch.no_grad():
        torch.testing.assert_close(model(batch).loss, made.loss, rtol=0, atol=0)


def test_every_known_family_is_tested():
    assert {family.partition("-")[0] for family in EXACT} | {"gemma2"} == {name.lower() for name in supervised.FAMILIES}


def test_soft_caps_of_logits_are_refused_and_their_absence_is_not(make_model, batch):
    with pytest.raises(RuntimeError, match="cannot serve this model: Gemma2ForCausalLM caps its logits; use 'auto'"):
        attach(make_model("gemma2"), loss="chunked")
    model = make_model("gemma2", final_logit_softcapping=None)
    exact = alone(model, batch)
    attach(model, loss="chunked")
    assert_same_step(packed(model, batch), exact, batch)


def test_auto_goes_by_the_number_of_logits(make_model, batch, monkeypatch):
    model = make_model("llama")
    exact = alone(model, batch)
    attach(model)
    assert packed(model, batch).logits is not None
    count = count_of(batch) * model.config.vocab_size
    monkeypatch.setattr(supervised, "DENSE", count)
    assert packed(model, batch).logits is not None
    monkeypatch.setattr(supervised, "DENSE", count - 1)
    made = packed(model, batch)
    assert made.logits is None
    assert_same_step(made, exact, batch)


def test_dense_never_does(make_model, batch, monkeypatch):
    monkeypatch.setattr(supervised, "DENSE", 0)
    model = make_model("llama")
    attach(model, loss="dense")
    assert packed(model, batch).logits is not None


@pytest.mark.parametrize("count", [7, torch.tensor(7)])
def test_num_items_in_batch_divides_the_sum(make_model, batch, count):
    model = make_model("llama")
    attach(model, loss="chunked")
    mean = model(batch).loss
    made = model(batch, num_items_in_batch=count).loss
    torch.testing.assert_close(made, mean * count_of(batch) / 7)


def test_without_a_supervised_row(make_model, batch):
    """A mean of none is not a number, as transformers' own; a sum is 0."""
    model = make_model("llama")
    attach(model, loss="chunked")
    inputs = batch.model_inputs()
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    del inputs["supervised_rows"]
    assert model(**inputs).loss.isnan()
    loss = model(**inputs, num_items_in_batch=3).loss
    loss.backward()
    assert loss == 0
    assert not model.lm_head.weight.grad.any()


def test_what_else_the_model_gives(make_model, batch):
    model = make_model("llama")
    handle = attach(model, loss="dense")
    dense = model(batch, output_hidden_states=True)
    handle.detach()
    attach(model, loss="chunked")
    made = model(batch, output_hidden_states=True)
    assert list(made) == ["loss", "hidden_states"]
    assert all(torch.equal(a, b) for a, b in zip(made.hidden_states, dense.hidden_states, strict=True))
    assert torch.equal(model(batch, return_dict=False)[0], made.loss)
    model.config.return_dict = False
    assert isinstance(model(batch), tuple)


def test_other_calls_are_as_before(make_model, pack, batch):
    model, ids = make_model("llama"), torch.arange(3, 23).view(2, 10)
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 2}
    before, text = model(ids, labels=ids), model.generate(ids, **options)
    signature = inspect.signature(model.forward)
    attach(model, loss="chunked")
    after = model(ids, labels=ids)
    assert torch.equal(after.loss, before.loss)
    assert torch.equal(after.logits, before.logits)
    assert torch.equal(model.generate(ids, **options), text)
    assert inspect.signature(model.forward) == signature
    assert model(pack(pf.Text(), targets=False)).logits.shape[2] == model.config.vocab_size
    rows = torch.tensor([3, 5])
    inputs = {**batch.model_inputs(), "logits_to_keep": rows}
    del inputs["labels"]
    assert model(**inputs).logits.shape[1] == 2


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_detach_restores_the_model(make_model, batch, family):
    model, ids = make_model(family), torch.arange(20).view(2, 10)
    before, logits = snapshot(model), model(ids).logits
    handle = attach(model, loss="chunked")
    assert model(batch).logits is None
    handle.detach()
    assert_equal(before, snapshot(model))
    assert torch.equal(model(ids).logits, logits)
    attach(model, loss="dense").detach()
    assert_equal(before, snapshot(model))


def test_a_copy_has_its_own_head(make_model, batch):
    model = make_model("llama")
    attach(model, loss="chunked")
    other = copy.deepcopy(model)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.model.layers[0].mlp.up_proj.weight.zero_()
    assert_same_step(packed(other, batch), alone(other, batch), batch)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable.:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
def test_with_gradient_checkpointing(make_model, batch, reentrant):
    model = make_model("llama")
    exact = alone(model, batch)
    attach(model, loss="chunked")
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert_same_step(packed(model, batch), exact, batch)


def test_compiled_without_graph_breaks(make_model, pack, monkeypatch):
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    monkeypatch.setattr(supervised, "DENSE", 100)
    model = make_model("llama", num_hidden_layers=1)
    batches = [pack(pf.SessionPatches(group=2), users=users, first=users - 3) for users in (4, 5)]
    exact = [alone(model, batch) for batch in batches]
    attach(model)
    model.train()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    counts = []
    for batch, expected in zip(batches, exact, strict=True):
        made = packed(model, batch, compiled)
        assert made.logits is None
        assert_same_step(made, expected, batch)
        counts.append(counter.frame_count)
    assert counts[0] == counts[-1]


def test_autocast_as_accelerate_does_it(make_model, batch):
    """It wraps the model's forward, and unwraps it again. The gradients round in other places than dense ones."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    model = make_model("llama")
    exact = alone(model, batch)
    handle = attach(model, loss="dense")
    with torch.autocast("cpu", torch.bfloat16):
        dense = packed(model, batch)
    handle.detach()
    handle = attach(model, loss="chunked")
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    prepared = accelerator.prepare_model(model)
    made = packed(prepared, batch)
    assert made.logits is None
    torch.testing.assert_close(made.loss, dense.loss, rtol=1e-5, atol=0)
    for name, gradient in exact.gradients.items():
        own = (dense.gradients[name] - gradient).norm()
        assert 0 < (made.gradients[name] - gradient).norm() <= 1.5 * own, name
    accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert model(batch).logits is None
    handle.detach()
    assert "forward" not in vars(model)


def test_detaching_leaves_a_wrapper_of_the_forward(make_model, batch):
    model, calls = make_model("llama"), []
    handle = attach(model, loss="chunked")
    ours = model.forward
    model.forward = lambda *args, **options: calls.append(1) or ours(*args, **options)
    assert model(batch).logits is None
    handle.detach()
    assert model(torch.tensor([[1, 2]])).logits.shape[1] == 2
    assert len(calls) == 2


def replaced_head(model):
    model.set_output_embeddings(torch.nn.Linear(32, model.config.vocab_size, bias=False))


def hooked_head(model):
    model.lm_head.register_forward_hook(lambda module, args, output: 2 * output)


def own_loss(model):
    model.loss_function = lambda logits, labels, vocab_size, **options: logits.float().square().mean()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replaced_head, "head has been replaced"),
        (hooked_head, "a hook reads"),
        (own_loss, "a loss function of its own"),
    ],
)
def test_what_changes_after_attaching(make_model, batch, monkeypatch, change, message):
    """auto then gives the loss that transformers gives; chunked says why it cannot."""
    monkeypatch.setattr(supervised, "DENSE", 0)
    asked, left = make_model("llama"), make_model("llama")
    torch.manual_seed(1)
    attach(asked, loss="chunked")
    change(asked)
    with pytest.raises(
        RuntimeError, match=f"loss='chunked' cannot serve this model: .*{message}.*use 'auto' or 'dense'"
    ):
        asked(batch)
    torch.manual_seed(1)
    attach(left)
    change(left)
    plain = make_model("llama")
    attach(plain, loss="dense")
    torch.manual_seed(1)
    change(plain)
    left.set_output_embeddings(plain.get_output_embeddings()) if change is replaced_head else None
    assert torch.equal(left(batch).loss, plain(batch).loss)


def refused_family(make_model):
    return make_model("granite")


def refused_head(make_model):
    class Scaled(torch.nn.Linear):
        def forward(self, x):
            return 3 * super().forward(x)

    model = make_model("llama")
    model.set_output_embeddings(Scaled(32, model.config.vocab_size, bias=False))
    return model


def refused_forward(make_model):
    model = make_model("llama")
    model.forward = model.forward
    return model


def refused_subclass(make_model):
    model = make_model("llama")

    class Own(type(model)):
        def forward(self, *args, **options):
            return super().forward(*args, **options)

    model.__class__ = Own
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (refused_family, "GraniteForCausalLM's forward is not known"),
        (refused_subclass, "Own's forward is not known"),
        (refused_forward, "LlamaForCausalLM's forward has been replaced"),
        (refused_head, "its head is no plain linear layer but .*test_supervised.Scaled"),
    ],
)
def test_models_that_make_their_logits(make_model, batch, monkeypatch, make, message):
    """chunked refuses and changes nothing; auto leaves it to the model."""
    monkeypatch.setattr(supervised, "DENSE", 0)
    model = make(make_model)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match=message):
        attach(model, loss="chunked")
    assert_equal(before, snapshot(model))
    exact = alone(model, batch)
    attach(model)
    made = packed(model, batch)
    assert made.logits is not None
    assert_same_step(made, exact, batch)


def test_no_such_loss(make_model):
    with pytest.raises(ValueError, match="loss must be one of 'auto', 'dense', 'chunked', got 'fused'"):
        attach(make_model("llama"), loss="fused")
    with pytest.raises(TypeError, match="loss must be a name, got bool"):
        attach(make_model("llama"), loss=True)


@pytest.fixture
def one_rank(tmp_path):
    import torch.distributed as dist

    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.FileStore(str(tmp_path / "store"), 1))
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("own_group", [False, True])
def test_a_head_that_fsdp2_shards(make_model, batch, one_rank, own_group):
    """At rest its weight is a DTensor, which the operator would not take."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    model = make_model("llama")
    exact = alone(model, batch)
    attach(model, loss="chunked")
    for layer in (*model.model.layers, *([model.lm_head] if own_group else [])):
        fully_shard(layer)
    fully_shard(model)
    assert isinstance(model.lm_head.weight, DTensor)
    made = packed(model, batch)
    assert made.logits is None
    made.gradients = {name: gradient.full_tensor() for name, gradient in made.gradients.items()}
    assert_same_step(made, exact, batch)


@pytest.mark.parametrize("loss_only", [True, False])
def test_trainer_evaluates_without_logits(make_model, batch, tmp_path, loss_only):
    from transformers import Trainer, TrainingArguments

    model = make_model("llama")
    attach(model, loss="chunked")
    args = TrainingArguments(
        output_dir=str(tmp_path),
        prediction_loss_only=loss_only,
        remove_unused_columns=False,
        label_names=["labels"],
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )
    trainer = Trainer(model, args, eval_dataset=[0, 1], data_collator=lambda samples: batch.model_inputs())
    assert trainer.evaluate()["eval_loss"] == pytest.approx(model(batch).loss.item(), rel=1e-6)
