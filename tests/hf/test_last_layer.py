# SPDX-License-Identifier: Apache-2.0
"""The last MLP sees the rows that go on to the head; what the model gives, and its gradients, are what they were."""

import copy
from types import MethodType

import pytest
import torch
from torch.nn.modules import module as global_hooks

import patchrec_fast as pf
from patchrec_fast.hf import attach, last_layer, supervised
from tests.hf.conftest import WIDE_FAMILIES
from tests.hf.oracle import alone, assert_same_step, packed, predicting
from tests.hf.test_detach import assert_equal, snapshot

KNOWN = sorted({*WIDE_FAMILIES} - {"granite"})


@pytest.fixture
def batch(pack):
    return pack(pf.SessionPatches(group=2), users=3)


@pytest.fixture
def spy(monkeypatch):
    """spy(model): the list that each MLP's call adds its number of rows to."""

    def watch(model):
        kind = type(next(module for name, module in model.named_modules() if name.endswith("mlp")))
        seen, forward = [], kind.forward
        monkeypatch.setattr(kind, "forward", lambda self, x: seen.append(x.shape[1]) or forward(self, x))
        return seen

    return watch


@pytest.fixture
def llama(make_model, spy):
    """Attached, and its spy's list."""
    model = make_model("llama")
    attach(model)
    return model, spy(model)


def counts(batch):
    """R and N."""
    return [len(batch.position_ids), len(predicting(batch))]


def assert_same(made, plain):
    """Sums over N rows or over R, R - N of them zeros, may be taken in another order: a few roundings of 6e-8."""
    torch.testing.assert_close(made.loss, plain.loss, rtol=1e-6, atol=0)
    for name, gradient in plain.gradients.items():
        assert (made.gradients[name] - gradient).norm() <= 1e-6 * gradient.norm(), name


@pytest.fixture
def without(monkeypatch):
    """without(model, batch): the step that the model makes when all rows are kept."""

    def step(model, batch):
        with monkeypatch.context() as patch:
            patch.setattr(last_layer, "kept_rows", lambda *_: {})
            return packed(model, batch)

    return step


@pytest.mark.parametrize("loss", ["dense", "chunked"])
@pytest.mark.parametrize("family", KNOWN)
@pytest.mark.usefixtures("poisoned")
def test_a_step_is_what_it_was(make_model, batch, spy, without, family, loss):
    model = make_model(family, **({"final_logit_softcapping": None} if loss == "chunked" else {}))
    attach(model, loss=loss)
    seen = spy(model)
    made = packed(model, batch)
    assert seen == counts(batch)
    assert_same(made, without(model, batch))
    assert seen[2:] == [counts(batch)[0]] * 2


def test_the_families_are_those_of_the_head():
    assert {family.partition("-")[0] for family in KNOWN} == {name.lower() for name in supervised.FAMILIES}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_with_transformers_own_attention(make_model, batch, spy, without, attention):
    model = make_model("llama")
    attach(model, attention=attention)
    seen = spy(model)
    made = packed(model, batch)
    assert seen == counts(batch)
    assert_same(made, without(model, batch))


def test_recommending(make_model, sample, spy, monkeypatch):
    """The packed call keeps the last row of each prompt; the calls that read titles keep all of theirs."""
    histories = [sample.dataset.items[:9].tolist(), sample.dataset.items[9:14].tolist()]
    model = make_model("llama")
    rec = pf.Recommender(model, pf.Packer(sample.catalogue, sample.prompt, pf.ItemPatches(keep=2)))
    attach(model)  # which tries the model, before anybody looks
    seen = spy(model)
    made = rec.recommend(histories, k=5)
    assert seen[0] > seen[1] == len(histories)
    assert len(seen) > 2
    assert seen[2::2] == seen[3::2]
    monkeypatch.setattr(last_layer, "kept_rows", lambda *_: {})
    plain = rec.recommend(histories, k=5)
    assert (made.items == plain.items).all()


@pytest.mark.parametrize("rows", [[4, 9], [-1], [9, 4, 9]])
def test_rows_of_the_callers_choice(llama, batch, rows):
    """Without gradients: a row named twice would get its gradient twice."""
    model, seen = llama
    inputs = {**batch.model_inputs(), "logits_to_keep": torch.tensor(rows)}
    del inputs["labels"]
    graded = model(**inputs).logits
    assert seen == [counts(batch)[0]] * 2
    terms = model.config.hidden_size + model.config.intermediate_size  # of the sums, in another order for fewer rows
    atol = terms * 2**-24 * float(graded.detach().abs().max())
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, graded, rtol=0, atol=atol)
    assert seen[2:] == [counts(batch)[0], len(rows)]


@pytest.mark.parametrize("keep", [3, torch.arange(8).unsqueeze(0), torch.zeros(1, dtype=torch.int64)[0]])
def test_rows_that_are_no_list_of_numbers_are_transformers_business(llama, batch, keep):
    model, seen = llama
    inputs = {**batch.model_inputs(), "logits_to_keep": keep}
    del inputs["labels"]
    with torch.no_grad():
        model(**inputs)
    assert seen == [counts(batch)[0]] * 2


@pytest.mark.parametrize("more", [False, True])
def test_more_than_three_quarters_are_not_selected(llama, batch, more):
    (model, seen), rows = llama, counts(batch)[0]
    kept = 3 * rows // 4 + more
    supervised = torch.arange(rows) >= rows - kept
    model(**{**batch.model_inputs(), "labels": torch.where(supervised, 3, -100)[None], "supervised_rows": None})
    assert seen == [rows, rows if more else kept]


def test_without_a_supervised_row(make_model, batch, spy):
    model = make_model("gemma2")
    attach(model)
    seen = spy(model)
    inputs = batch.model_inputs()
    del inputs["supervised_rows"]
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    model(**inputs, num_items_in_batch=3).loss.backward()
    assert seen == [counts(batch)[0], 0]
    assert not any(parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("how", ["argument", "configuration"])
def test_hidden_states_are_all_there(llama, batch, how):
    """Asking for them leaves transformers' hooks on the layers, which read nothing in other calls."""
    model, seen = llama
    if how == "argument":
        states = model(batch, output_hidden_states=True).hidden_states
    else:
        model.config.output_hidden_states = True
        states = model(batch).hidden_states
        model.config.output_hidden_states = False
    assert seen == [counts(batch)[0]] * 2
    inputs = batch.model_inputs()
    del inputs["labels"]
    whole = model(**inputs, output_hidden_states=True).hidden_states
    torch.testing.assert_close(states, whole, rtol=0, atol=0)
    del seen[:]
    model(batch)
    assert seen == counts(batch)


PLACES = {
    "mlp": lambda model: model.model.layers[-1].mlp,
    "inside the mlp": lambda model: model.model.layers[-1].mlp.down_proj,
    "layer": lambda model: model.model.layers[-1],
    "norm": lambda model: model.model.norm,
    "decoder": lambda model: model.model,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("before", [True, False])
def test_whoever_has_a_hook_sees_all_rows(llama, batch, place, before):
    model, seen = llama
    module = PLACES[place](model)
    handle = getattr(module, f"register_forward{'_pre' * before}_hook")(lambda *_: None)
    model(batch)
    assert seen == [counts(batch)[0]] * 2
    handle.remove()
    model(batch)
    assert seen[2:] == counts(batch)


@pytest.mark.parametrize("register", ["register_module_forward_hook", "register_module_forward_pre_hook"])
def test_whoever_has_a_hook_everywhere_sees_all_rows(llama, batch, register):
    model, seen = llama
    handle = getattr(global_hooks, register)(lambda *_: None)
    try:
        model(batch)
    finally:
        handle.remove()
    assert seen == [counts(batch)[0]] * 2


def replaced_forward(model):
    """As one with a loss of hidden states besides would be."""
    model.forward = MethodType(lambda self, **kwargs: type(self).forward(self, **kwargs), model)


def one_layer_more(model):
    model.model.layers.append(copy.deepcopy(model.model.layers[0]))
    model.config.num_hidden_layers += 1


def one_layer_less(model):
    model.config.num_hidden_layers -= 1


@pytest.mark.parametrize("change", [replaced_forward, one_layer_more, one_layer_less])
def test_what_changes_after_attaching(llama, batch, change):
    model, seen = llama
    change(model)
    model(batch)
    assert seen == [counts(batch)[0]] * model.config.num_hidden_layers


def own_model(model):
    class Own(type(model)):
        def forward(self, *args, **options):
            return super().forward(*args, **options)

    model.__class__ = Own


def own_layer(model):
    class Own(type(model.model.layers[-1])):
        def forward(self, *args, **options):
            return super().forward(*args, **options)

    model.model.layers[-1].__class__ = Own


def patched_layer(model):
    model.model.layers[-1].forward = model.model.layers[-1].forward


@pytest.mark.parametrize("change", [own_model, own_layer, patched_layer])
def test_what_is_not_known_is_left_alone(make_model, batch, spy, change):
    model = make_model("llama")
    change(model)
    before = vars(model.model.layers[-1]).copy()
    attach(model)
    assert vars(model.model.layers[-1]) == before
    seen = spy(model)
    model(batch)
    assert seen == [counts(batch)[0]] * 2


def test_an_unknown_family_is_left_alone(make_model, batch):
    model = make_model("granite")
    attach(model)
    assert all("forward" not in vars(layer) for layer in model.model.layers)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable.:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_with_gradient_checkpointing(make_model, pack, spy, family, reentrant):
    """Two calls, then both backwards: each layer that runs again is told of its own call's rows."""
    batches = [pack(pf.SessionPatches(group=2), users=users) for users in (3, 2)]
    model = make_model(family)
    attach(model)
    model.train()
    (model(batches[0]).loss + model(batches[1]).loss).backward()
    plain = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    seen = spy(model)
    (model(batches[0]).loss + model(batches[1]).loss).backward()
    assert sorted(seen) == sorted(2 * (counts(batches[0]) + counts(batches[1])))
    for name, parameter in model.named_parameters():
        assert (parameter.grad - plain[name]).norm() <= 1e-6 * plain[name].norm(), name


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable.:FutureWarning")
def test_compiled_with_gradient_checkpointing(make_model, pack):
    """No graph break, no graph for each batch."""
    from torch._dynamo.testing import AotEagerAndRecordGraphs

    torch._dynamo.reset()
    model = make_model("llama", num_hidden_layers=1)
    batches = [pack(pf.SessionPatches(group=2), users=users, first=users - 3) for users in (4, 5)]
    exact = [alone(model, batch) for batch in batches]
    attach(model)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    backend = AotEagerAndRecordGraphs()
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    graphs = []
    for batch, expected in zip(batches, exact, strict=True):
        assert_same_step(packed(model, batch, compiled), expected, batch)
        graphs.append(len(backend.graphs))
    assert graphs[0] == graphs[1]
    rows = {32: set(), 48: set()}  # that make queries, and the MLP
    for graph in (part.graph for whole in backend.graphs for part in whole.modules() if hasattr(part, "graph")):
        for node in graph.nodes:
            shape = getattr(node.meta.get("example_value"), "shape", ())
            if "linear" in str(node.target) and shape[-1] in rows:
                rows[shape[-1]].add(str(shape[1]))
    assert len(rows[48]) == 1
    assert len(rows[32]) == 2  # attention's, and the MLP's way back
    assert rows[48] < rows[32]


def test_the_forward_of_mixed_precision(llama, batch):
    """accelerate's, around the model's."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    model, seen = llama
    AcceleratorState._reset_state(reset_partial_state=True)
    Accelerator(cpu=True, mixed_precision="bf16").prepare_model(model)(**batch.model_inputs()).loss.backward()
    AcceleratorState._reset_state(reset_partial_state=True)
    assert seen == counts(batch)


def test_adapters(make_model, batch, spy, without):
    lora = pytest.importorskip("peft")
    config = lora.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model = lora.get_peft_model(make_model("llama"), config)
    attach(model)
    seen = spy(model)
    made = packed(model, batch)
    assert seen == counts(batch)
    assert_same(made, without(model, batch))


def test_liger(make_model, batch):
    """Its forward, and its MLP put in after attaching; a plain function stands in for its kernel."""
    liger = pytest.importorskip("liger_kernel.transformers.model.llama")
    model = make_model("llama")
    attach(model)
    model.forward = MethodType(liger.lce_forward, model)
    seen = []
    for layer in model.model.layers:
        layer.mlp.forward = MethodType(
            lambda self, x: seen.append(x.shape[1]) or type(self).forward(self, x), layer.mlp
        )
    exact = alone(make_model("llama"), batch)
    assert_same_step(packed(model, batch), exact, batch)
    assert seen == counts(batch)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable.:FutureWarning")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_fsdp2(make_model, batch, spy, without, tmp_path, checkpointing):
    """It changes the layers' classes, around whose forwards transformers puts checkpointing once more."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.FileStore(str(tmp_path / "store"), 1))
    try:
        model = make_model("llama")
        attach(model)
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        plain = without(model, batch)
        for module in (*model.model.layers, model):
            fully_shard(module)
        seen = spy(model)
        made = packed(model, batch)
        assert sorted(seen) == sorted(counts(batch) * (1 + checkpointing))
        made.gradients = {name: gradient.full_tensor() for name, gradient in made.gradients.items()}
        assert_same(made, plain)
        del seen[:]
        without(model, batch)
        assert seen == counts(batch)[:1] * 2 * (1 + checkpointing)
    finally:
        dist.destroy_process_group()


def test_a_copy_has_its_own_layer(make_model, batch):
    model = make_model("llama")
    attach(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.model.layers[-1].parameters():
            parameter.zero_()
    assert_same_step(packed(other, batch), alone(other, batch), batch)


def test_detach_restores_the_layer(make_model, batch):
    model = make_model("llama")
    before = snapshot(model)
    handle = attach(model)
    assert "forward" in vars(model.model.layers[-1])
    assert list(model.state_dict()) == list(before[3])
    model(batch).loss.backward()
    model.zero_grad()
    handle.detach()
    assert_equal(before, snapshot(model))
