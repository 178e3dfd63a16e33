# SPDX-License-Identifier: Apache-2.0
"""Every peer is the op: its output and gradient against the reference in float64."""

import pytest
import torch

from benchmarks import gate, shapes
from benchmarks.peers import GPU_PEERS, MODES, PEERS, Contestant, contestants, ours, peer
from patchrec_fast import PackedBatch


def made_of(ids, token_offsets, item_offsets):
    """A batch of that CSR; what the op does not read is left out."""
    rows = len(item_offsets) - 1
    integers = [torch.tensor(x, dtype=torch.int32) for x in (ids, token_offsets, item_offsets)]
    return PackedBatch(
        ids=integers[0],
        offsets=(integers[1], integers[2]),
        cu_seqlens=torch.tensor([0, rows], dtype=torch.int32),
        max_seqlen=rows,
        position_ids=torch.arange(rows),
    )


def drawn(seed, rows):
    generator = torch.Generator().manual_seed(seed)
    items = torch.randint(1, 8, (rows,), generator=generator)
    tokens = torch.randint(1, 20, (int(items.sum()),), generator=generator)
    ids = torch.randint(0, 97, (int(tokens.sum()),), generator=generator) ** 2 // 97  # skewed
    zero = torch.zeros(1, dtype=torch.int64)
    offsets = [torch.cat([zero, lengths.cumsum(0)]).tolist() for lengths in (tokens, items)]
    return made_of(ids.tolist(), *offsets)


@pytest.fixture(scope="module")
def packed():
    """Prompts of the generated sample: plain rows, item patches and session patches."""
    pytest.importorskip("transformers")
    shape = shapes.Shape("small", "ml-1m", users=3, items=43, group=5)
    return shapes.batches(shape, shapes.load_source("ml-1m", None, None), 1)[0]


CSRS = {
    "one token": lambda: made_of([3], [0, 1], [0, 1]),
    "one row of all": lambda: made_of([5, 5, 0, 2], [0, 1, 4], [0, 2]),
    "plain rows only": lambda: made_of([1, 0, 1], [0, 1, 2, 3], [0, 1, 2, 3]),
    "2 rows": lambda: drawn(0, 2),
    "61 rows": lambda: drawn(1, 61),
}


@pytest.mark.parametrize("csr", CSRS)
@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_peer_is_the_op(name, csr, dtype):
    gate.check(peer(name), CSRS[csr](), dtype, width=33)


@pytest.mark.parametrize("name", GPU_PEERS)
@pytest.mark.parametrize("csr", CSRS)
def test_peer_of_gpus_is_the_op(name, csr):
    """In float64, which every device takes."""
    gate.check(peer(name), CSRS[csr](), torch.float64, width=33)


@pytest.mark.parametrize("name", [*PEERS, *GPU_PEERS])
def test_peer_on_real_layout(name, packed):
    gate.check(peer(name), packed, torch.float64)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_ours_is_the_op(mode, dtype, packed):
    gate.check(ours(mode), packed, dtype)


def test_every_mode_has_ours_and_a_peer():
    for mode in MODES:
        names = [each.name for each in contestants(mode)]
        assert names[0] == "patchrec_fast"
        assert len(names) == len(set(names)) >= 2


def _flat_mean(weight, prepared):
    """Wrong for rows of several items: every token weighs the same."""
    ids, row_offsets, _ = prepared
    bag = torch.nn.functional.embedding_bag
    return bag(ids, weight, row_offsets, mode="mean", include_last_offset=True)


class _LosesGradient(torch.autograd.Function):
    """Right forward, half the gradient of one element."""

    @staticmethod
    def forward(ctx, out):
        return out.clone()

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        grad[0, 0] /= 2
        return grad


BROKEN = {
    "flat mean": _flat_mean,
    "one ulp-ish off": lambda w, p: PEERS["embedding_bag"].compress(w, p) * (1 + 1e-9),
    "a row missing": lambda w, p: PEERS["embedding_bag"].compress(w, p)[:-1],
    "NaN": lambda w, p: PEERS["embedding_bag"].compress(w, p) * float("nan"),
    "gradient": lambda w, p: _LosesGradient.apply(PEERS["embedding_bag"].compress(w, p)),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_the_gate_refuses(broken, packed):
    contestant = Contestant("broken", PEERS["embedding_bag"].prepare, BROKEN[broken])
    with pytest.raises((gate.WrongAnswer, RuntimeError), match=r"broken, |shape"):
        gate.check(contestant, packed, torch.float64)


def test_the_gate_refuses_in_bfloat16(packed):
    contestant = Contestant("broken", PEERS["embedding_bag"].prepare, _flat_mean)
    with pytest.raises(gate.WrongAnswer, match=r"broken, output in torch.bfloat16"):
        gate.check(contestant, packed, torch.bfloat16)
