# SPDX-License-Identifier: Apache-2.0
"""Calls that end the process where they touch memory that is not theirs: `python -m tests.ops.wild`.

Each case runs in a child, forked before anything ran that forks badly (thread pools, autograd's device threads).
"""

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from functools import partial

import numpy as np
import torch

import patchrec_fast as pf
from patchrec_fast.ops import native
from patchrec_fast.ops.attention.tree import NAMES, tree_attention
from patchrec_fast.ops.compress.plan import plan_on_device
from patchrec_fast.testing import ragged_batch
from tests.ops import trees as trees_of

IMPLS = ("reference",) if native.why_not() else ("cpu", "reference")
SECONDS = float(os.environ.get("PATCHREC_FAST_RACE_SECONDS", "1.5"))


def default(way):
    """A default device or dtype changes no number, dtype or device of what is made."""
    batch, weight = ragged_batch(40, 97), torch.randn(97, 8)
    ids, offsets = torch.arange(9000, dtype=torch.int32) % 97, torch.arange(9001, dtype=torch.int32)
    wide = torch.randn(97, 1024)

    def results():
        found = [pf.compress(ids, offsets, wide).sum(0), *plan_on_device(*batch, 97).tensors()]
        for impl in ("auto", "reference"):
            for mode in ("dense", "sparse", "accumulate"):
                leaf = weight.clone().requires_grad_()
                if mode == "accumulate":
                    leaf.grad = weight * 3
                out = pf.compress(batch.ids, batch.offsets, leaf, impl=impl, grad_mode=mode)
                (out * out).sum().backward()
                found += [out.detach(), leaf.grad.to_dense()]
        return found

    expected = results()
    if way == "float64":
        torch.set_default_dtype(torch.float64)
    elif way == "context":
        torch.device("meta").__enter__()
    else:
        torch.set_default_device("meta")
    for a, b in zip(expected, results(), strict=True):
        assert (a.device, a.dtype) == (b.device, b.dtype)
        assert a.equal(b)


FREED = ("weight", "ids", "tokens", "items", "later ids", "incoming", "target")


def freed(impl, what):
    """A storage with no bytes left, or too few, is refused by the call that would read or write it."""
    for left in (0, 1, 7):
        weight, ids = torch.randn(60, 4, requires_grad=True), torch.tensor([1, 59, 2])
        tokens, items = torch.tensor([0, 1, 3]), torch.tensor([0, 2])
        weight.grad, grad = torch.zeros(60, 4), torch.ones(1, 4)
        before = {"weight": weight, "ids": ids, "tokens": tokens, "items": items}
        after = {"later ids": ids, "incoming": grad, "target": weight.grad}
        try:
            if what in before:
                before[what].untyped_storage().resize_(left)
            out = pf.compress(ids, (tokens, items), weight, impl=impl, grad_mode="accumulate")
            if what in after:
                after[what].untyped_storage().resize_(left)
            out.backward(grad)
        except ValueError as error:
            if "storage of" not in str(error):
                raise
        else:
            raise AssertionError(f"no error where {left} bytes are left")


def freed_tree(what):
    trees = trees_of.make([2, 1], [4, 3])
    getattr(trees, what).untyped_storage().resize_(0)
    try:
        tree_attention(*trees, max_rows=2, max_seqlen=4, scale=1.0)
    except ValueError as error:
        if f"{what} has a storage of 0 bytes" not in str(error):
            raise
    else:
        raise AssertionError("no error")


def written(what, dtype):
    """Ids and offsets in shared memory, as a loader's are, that a thread writes: an error or any numbers."""
    torch.set_num_threads(2)
    size = 60000
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 1000, size)).to(dtype).share_memory_()
    tokens = torch.arange(0, size + 1, 4).to(dtype).share_memory_()
    items = torch.arange(0, tokens.numel(), 3).to(dtype).share_memory_()
    x = {"ids": ids, "tokens": tokens, "items": items}[what].numpy()
    good, half, stop = x.copy(), len(x) // 2, []

    def write():
        k = 0
        while not stop:
            x[half:-1] = (2**30, -7, 2**31 - 1, 0)[k % 4]
            time.sleep(0)
            x[half:-1] = good[half:-1]
            k += 1

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    weight, end = torch.randn(1000, 8, requires_grad=True), time.monotonic() + SECONDS
    while time.monotonic() < end:
        for mode in ("dense", "sparse"):
            with contextlib.suppress(ValueError, RuntimeError):
                pf.compress(ids, (tokens, items), weight, grad_mode=mode).sum().backward()
            weight.grad = None
    stop.append(1)
    writer.join()


CASES = {
    **{f"default {way}": partial(default, way) for way in ("set_default_device", "context", "float64")},
    **{f"freed {what}, {impl}": partial(freed, impl, what) for impl in IMPLS for what in FREED},
    **{f"freed {what} of a tree": partial(freed_tree, what) for what in NAMES},
    "written ids": partial(written, "ids", torch.int64),
    "written tokens": partial(written, "tokens", torch.int32),
    "written items": partial(written, "items", torch.int64),
}


def in_child(case):
    """How the child ended: 0, its exit status, or minus the signal that ended it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    signal.alarm(60)  # ends a child that hangs
    try:
        case()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def main():
    torch.set_num_threads(1)
    ended = {name: in_child(case) for name, case in CASES.items()}
    failed = {name: code for name, code in ended.items() if code}
    print(f"{len(ended)} cases, failed (exit status, or minus the signal): {failed or 'none'}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
