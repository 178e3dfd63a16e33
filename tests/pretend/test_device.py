# SPDX-License-Identifier: Apache-2.0
"""The pretended device does what CUDA does: counts, refuses, captures, replays."""

import contextlib
import copy
import gc
import warnings

import pytest
import torch
from torch.nn import functional as F

ON = "cuda"


def test_results_are_the_cpu_s(pretend):
    """A small model's loss and gradients, to the bit: the CPU computes them."""
    torch.manual_seed(0)
    x, y = torch.randn(5, 7), torch.randint(0, 3, (5,))
    losses, gradients = [], []
    for where in ("cpu", ON):
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(7, 8), torch.nn.GELU(), torch.nn.Linear(8, 3)).to(where)
        loss = F.cross_entropy(model(x.to(where)), y.to(where))
        loss.backward()
        losses.append(loss.detach().cpu())
        gradients.append([each.grad.cpu() for each in model.parameters()])
    assert torch.equal(*losses)
    assert all(map(torch.equal, *gradients))


WAITING = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool((x > 0).any()),
    "cpu": lambda x: x.cpu(),
    "tolist": lambda x: x.tolist(),
    "to": lambda x: torch.ones(3).to(ON),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "masked_select": lambda x: x.masked_select(x > 0),
    "write by a mask": lambda x: x.index_put_((x > 0,), x.new_ones(())),
    "host index": lambda x: x[torch.tensor([0, 1])],
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "repeat_interleave": lambda x: x.repeat_interleave(torch.ones_like(x, dtype=torch.int64)),
    "synchronize": lambda x: torch.cuda.synchronize(),
    "stream": lambda x: torch.cuda.current_stream().synchronize(),
    "event": lambda x: torch.cuda.Event().synchronize(),
}
FREE = {
    "arithmetic": lambda x: (x + 1).softmax(0).sum(),
    "in place": lambda x: x.add_(1).mul_(2),
    "index": lambda x: x[torch.arange(2, device=ON)],
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "masked_fill": lambda x: x.masked_fill(x > 0, 0.0),
    "sort": lambda x: x.sort(),
    "a known size": lambda x: x.repeat_interleave(torch.ones_like(x, dtype=torch.int64), output_size=3),
    "views": lambda x: x[1:].unsqueeze(0).expand(2, 2).mT,
    "pinned": lambda x: torch.ones(3).pin_memory().to(ON, non_blocking=True),
    "back": lambda x: torch.empty(3, pin_memory=True).copy_(x, non_blocking=True),
}


@pytest.mark.parametrize("kind", WAITING)
def test_a_wait_is_counted_warned_of_refused(pretend, kind):
    """Once each; as an error, in a capture too, where nothing else is lost."""
    x = torch.tensor([1.0, -1.0, 2.0], device=ON)
    pretend.reset()
    WAITING[kind](x)
    (times,) = pretend.waits().values()
    assert times == 1
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        captured(lambda: WAITING[kind](x))
    assert torch.equal(x.cpu(), torch.tensor([1.0, -1.0, 2.0])) or kind == "write by a mask"
    asked = kind in ("synchronize", "stream", "event")  # by name, of which torch says nothing
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        WAITING[kind](x)
    assert sum("synchronizing CUDA operation" in str(each.message) for each in seen) == (not asked)
    torch.cuda.set_sync_debug_mode("error")
    with contextlib.nullcontext() if asked else pytest.raises(RuntimeError, match="synchronizing CUDA operation"):
        WAITING[kind](x)


@pytest.mark.parametrize("kind", FREE)
def test_what_waits_for_nobody(pretend, kind):
    x = torch.tensor([1.0, -1.0, 2.0], device=ON)
    pretend.reset()
    FREE[kind](x)
    assert pretend.waits() == {}
    captured(lambda: FREE[kind](x))


def captured(function):
    """The graph; the failed call's own error, and the stream put back where torch does not."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            function()
    except RuntimeError as error:
        if "previous error during capture" not in str(error):
            raise
        raise error.__context__ from None
    finally:
        torch.cuda.set_stream(stream)
    return graph


@pytest.mark.parametrize(
    "mixed",
    [
        lambda x: torch.ones(3) + x,
        lambda x: x @ torch.ones(3),
        lambda x: torch.ones(3)[x.long()],
        lambda x: F.embedding(x.long(), torch.ones(3, 2)),
        lambda x: torch.cat([torch.ones(3), x]),
        lambda x: torch.where(x > 0, x, torch.ones(3)),
        lambda x: torch.ones(3).index_put_((x.long(),), torch.ones(3)),
        lambda x: torch.mm(torch.ones(1, 3), torch.ones(3, 1), out=x.new_empty(1, 1)),
    ],
)
def test_devices_do_not_mix(pretend, mixed):
    with pytest.raises(RuntimeError, match="same device"):
        mixed(torch.ones(3, device=ON))
    assert torch.equal((torch.tensor(2.0) * torch.ones(3, device=ON)).cpu(), torch.full((3,), 2.0))  # a number may


def test_copies(pretend):
    """Of parameters and of buffers."""
    norm = torch.nn.BatchNorm1d(3).cuda()
    other = copy.deepcopy(norm)
    other.running_mean.fill_(5)
    assert norm.running_mean.tolist() == [0, 0, 0]
    assert other.running_mean.is_cuda
    assert torch.equal(other.weight, norm.weight)


def test_counts(pretend):
    x = torch.ones(3).to(ON)
    y = (x + 1).view(1, 3)
    y.cpu()
    counts = pretend.counts()
    assert counts["copy to the device"] == counts["copy to the host"] == counts["launches"] == counts["aten::add"] == 1
    assert counts["allocations"] == 2


def test_memory_is_poisoned_counted_and_ends(pretend):
    gc.collect()
    before = torch.cuda.memory_allocated()
    x = torch.empty(1000, device=ON)
    assert x.isnan().all()
    assert (torch.empty(5, dtype=torch.int64, device=ON) == -1).all()
    torch.cuda.reset_peak_memory_stats()
    assert torch.cuda.memory_allocated() - before == 4096
    y = x + 1
    del x, y
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.max_memory_allocated() - before == 2 * 4096
    with pretend.memory_of(4096), pytest.raises(torch.OutOfMemoryError):
        torch.empty(2000, device=ON)
    torch.empty(2000, device=ON)


def test_a_graph_holds_launches_not_contents(pretend):
    """Nothing is done by a capture; a replay reads what is there then, and writes where the capture wrote."""
    x, total = torch.tensor([1.0, 2.0], device=ON), torch.zeros(2, device=ON)
    made = []

    def step():
        y = x * 2
        total.add_(y)
        made.append(y.view(1, 2).sum(1))
        x.mul_(3)

    graph = captured(step)
    assert x.tolist() == [1, 2]
    assert total.tolist() == [0, 0]
    assert made[0].isnan().all()
    pretend.reset()
    graph.replay()
    assert pretend.counts() == {"launches": 1, "graph": 1}
    assert (x.tolist(), total.tolist(), made[0].tolist()) == ([3, 6], [2, 4], [6])
    x.fill_(10)
    graph.replay()
    assert (x.tolist(), total.tolist(), made[0].tolist()) == ([30, 30], [22, 24], [40])


def test_a_graph_holds_a_backward(pretend):
    """Which autograd runs in a thread of its own."""
    x = torch.tensor([1.0, 2.0], device=ON, requires_grad=True)
    x.grad = torch.zeros_like(x)
    graph = captured(lambda: (x**3).sum().backward())
    assert x.grad.tolist() == [0, 0]
    graph.replay()
    graph.replay()
    assert x.grad.tolist() == [6, 24]


def test_pageable_memory_is_refused_in_a_capture(pretend):
    x = torch.ones(3, device=ON)
    with pytest.raises(RuntimeError, match="of pageable memory"):
        captured(lambda: x.copy_(torch.zeros(3), non_blocking=True))


def test_kernels_take_tensors_of_the_device(pretend):
    import triton
    from patchrec_kernels import _launch

    @triton.jit
    def doubled(x_ptr):
        triton.language.store(x_ptr, triton.language.load(x_ptr) * 2)

    x = torch.ones(1, device=ON)
    graph = captured(lambda: doubled[(1,)](x))
    assert x.item() == 1
    graph.replay()
    doubled[(1,)](x)
    assert x.item() == 4
    assert pretend.counts()["doubled"] == 2
    with pytest.raises(ValueError, match="cannot be accessed from Triton"):
        doubled[(1,)](torch.ones(1))
    with pytest.raises(RuntimeError, match="invalid argument"):
        doubled[(1, 2**16)](x)
    target = _launch.target("cuda")
    assert (target.backend, target.arch, target.warp_size) == ("cuda", 90, 32)
    assert _launch.device_limits(torch.device("cuda", 0)).multiprocessors == 132
