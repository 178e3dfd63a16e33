# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy in blocks against `F.cross_entropy` of all logits in float64."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from patchrec_fast.ops import cross_entropy
from patchrec_fast.ops.cross_entropy import linear_cross_entropy
from patchrec_fast.testing import UNIT_ROUNDOFF

NAMES = ("hidden", "weight", "bias")


def make(rows, vocabulary=37, width=5, dtype=torch.float64, bias=True, scale=1.0):
    """hidden, weight, bias, labels of which a third are -100, and the gradient of each row's loss."""
    generator = torch.Generator().manual_seed(rows)
    sizes = ((rows, width), (vocabulary, width), (vocabulary,))
    parts = [scale * torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
    parts = [part.to(dtype).requires_grad_() for part in parts]
    labels = torch.randint(0, vocabulary, (rows,), generator=generator)
    labels[::3] = -100
    grad = torch.randn(rows, generator=generator, dtype=torch.float64)
    return (parts[0], parts[1], parts[2] if bias else None), labels, grad


def dense(parts, labels):
    hidden, weight, bias = parts
    logits = F.linear(hidden, weight, bias)
    return F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), labels, reduction="none")


def step(parts, labels, grad, loss=None, **how):
    """Losses, and the gradient of each part, in float64."""
    hidden, weight, bias = parts
    losses = linear_cross_entropy(hidden, weight, labels, bias, **how) if loss is None else loss(parts, labels)
    made = torch.autograd.grad(losses, [part for part in parts if part is not None], grad.to(losses.dtype))
    return losses.detach().double(), [each.double() for each in made]


def exact(parts, labels, grad):
    double = [None if part is None else part.detach().double().requires_grad_() for part in parts]
    return step(double, labels, grad, dense)


# One logit, less than a word's of 13 rows and just those, words that divide 37 and do not, all and more, the default.
BLOCKS = [1, 12, 13, 37 * 4, 37 * 5 + 1, 37 * 13, 37 * 13 + 1, None]


@pytest.mark.parametrize("align", [1, 8])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("rows", [0, 1, 2, 13, 16])
def test_equals_dense_in_float64(rows, block, bias, keep, align, monkeypatch):
    monkeypatch.setattr(cross_entropy, "ALIGN", align)
    parts, labels, grad = make(rows, bias=bias)
    losses, gradients = step(parts, labels, grad, block=block, keep=keep)
    expected, expected_gradients = step(parts, labels, grad, dense)
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-12)
    for actual, each in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(actual, each, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("block", [100, None])
def test_float32_within_its_roundings(block, keep):
    """A logit of d products errs by (d + 1) u of their magnitude, a loss by two such and V roundings of its sum; a
    gradient's terms by as much relative to each, and N roundings of their sum."""
    parts, labels, grad = make(29, dtype=torch.float32)
    hidden, weight, bias = (part.detach().double() for part in parts)
    losses, gradients = step(parts, labels, grad, block=block, keep=keep)
    expected, expected_gradients = exact(parts, labels, grad)
    u = UNIT_ROUNDOFF[torch.float32]
    magnitude = (hidden.abs() @ weight.abs().T + bias.abs()).max()
    error = u * (2 * (hidden.shape[1] + 2) * magnitude + len(weight) + 8)
    assert ((losses - expected).abs() <= error).all()
    terms = (F.softmax(hidden @ weight.T + bias, 1) + F.one_hot(labels.clamp_min(0), len(weight))) * grad.abs()[:, None]
    terms[labels == -100] = 0
    sums = [terms @ weight.abs(), terms.T @ hidden.abs(), terms.sum(0)]
    for actual, each, total in zip(gradients, expected_gradients, sums, strict=True):
        assert ((actual - each).abs() <= (error + u * (len(hidden) + len(weight))) * total + u).all()


def test_bfloat16_is_reduced_in_float32():
    """The loss of 1,000 words is about 7, where bfloat16 has steps of 1/32: a mean in bfloat16 would be off by up to
    1/64. Ours is off by the roundings of the logits alone, below 2^-9 of each, and mostly cancelling."""
    parts, labels, _ = make(301, vocabulary=1000, width=64, dtype=torch.bfloat16, scale=0.3)
    hidden, weight, bias = parts
    losses = linear_cross_entropy(hidden, weight, labels, bias, block=7000)
    assert losses.dtype == torch.float32
    count = (labels != -100).sum()
    truth = dense([part.detach().double() for part in parts], labels).sum() / count
    assert abs(losses.sum() / count - truth) < 1 / 640
    torch.testing.assert_close(losses, dense(parts, labels), rtol=1e-5, atol=1e-5)  # the same roundings of logits
    assert abs(truth.bfloat16() - truth) > 1 / 640  # the trap


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("block", [7000, None])
def test_bfloat16_gradients_round_no_more_than_dense(block, keep):
    """Those of weight and bias are rounded once too. Hidden's is the sum of a rounded product for each block, which
    one block may dominate: two equal roundings where dense has one, 1.41 times the norm."""
    parts, labels, grad = make(301, vocabulary=1000, width=64, dtype=torch.bfloat16, scale=0.3)
    _, expected = exact(parts, labels, grad)
    _, rounded = step(parts, labels, grad, dense)
    _, actual = step(parts, labels, grad, block=block, keep=keep)
    for name, ours, theirs, each in zip(NAMES, actual, rounded, expected, strict=True):
        assert (ours - each).norm() <= (1.5 if name == "hidden" else 1.05) * (theirs - each).norm(), name


def test_rows_that_do_not_count_give_nothing():
    parts, labels, grad = make(13)
    losses, gradients = step(parts, labels, grad, block=50)
    assert (losses[::3] == 0).all()
    assert (gradients[0][::3] == 0).all()
    losses, gradients = step(parts, torch.full_like(labels, -100), grad, block=50)
    assert not any(each.any() for each in (losses, *gradients))


@pytest.mark.parametrize("block", [2000, 16000])
@pytest.mark.parametrize("rows", [64, 301])
def test_no_more_logits_than_a_block_exist(rows, block):
    """Of 1,000 words; weights and hidden states are smaller."""

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            for each in made if isinstance(made, tuple | list) else (made,):
                if isinstance(each, torch.Tensor):
                    self.elements = max(self.elements, each.numel())
            return made

    (hidden, weight, _), labels, grad = make(rows, vocabulary=1000, width=1)
    with torch.no_grad():
        for pass_ in ("forward", "backward"):
            with Largest() as largest:
                if pass_ == "forward":
                    _, lse, kept = cross_entropy._forward(hidden, weight, None, labels, block, False)
                else:
                    cross_entropy._backward(grad, hidden, weight, None, labels, lse, kept, block, [True, True, False])
            assert block / 2 < largest.elements <= block


@pytest.mark.parametrize("most", [37 * 13, 37 * 13 - 1])
def test_logits_are_kept_where_a_backward_will_want_them(most, monkeypatch):
    monkeypatch.setattr(cross_entropy, "KEEP", most)
    (hidden, weight, bias), labels, _ = make(13)

    def kept(*parts):
        saved = linear_cross_entropy(parts[0], parts[1], labels, parts[2]).grad_fn.saved_tensors
        return any(each is not None and each.shape == (37, 13) for each in saved)

    assert kept(hidden, weight, bias) == kept(hidden, weight.detach(), None) == (most == 37 * 13)
    sizes, empty = [], cross_entropy._empty
    monkeypatch.setattr(cross_entropy, "_empty", lambda words, *rest: [sizes.append(words), empty(words, *rest)][1])
    linear_cross_entropy(hidden.detach(), weight.detach(), labels, keep=True)
    linear_cross_entropy(hidden, weight, labels, keep=True)
    assert sizes == [0, 37]


def test_many_rows_have_a_block_of_words_nevertheless(monkeypatch):
    """As many as a product wants, unless the caller says how many logits."""
    monkeypatch.setattr(cross_entropy, "BLOCK", 50)
    for words, rows, block, expected in (
        (5, 13, None, [5] * 7 + [2]),
        (1, 13, None, [3] * 12 + [1]),
        (5, 13, 13, [1] * 37),
    ):
        monkeypatch.setattr(cross_entropy, "WORDS", words)
        made = cross_entropy._blocks(torch.empty(rows, 1), 37, block)
        assert [each.stop - each.start for each in made] == expected


def test_infinite_logits_as_dense():
    """A word that is ruled out, with -inf in its bias, alone in a block or not; and all of them."""
    parts, labels, grad = make(13)
    hidden, weight, bias = parts
    out = torch.arange(37) % 3 != 1
    out[labels[labels >= 0]] = False
    ruled = bias.detach().masked_fill(out, -torch.inf).requires_grad_()
    for block in (13, 13 * 5, None):
        losses, gradients = step((hidden, weight, ruled), labels, grad, block=block)
        expected, expected_gradients = step((hidden, weight, ruled), labels, grad, dense)
        torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-12)
        for actual, each in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(actual, each, rtol=1e-12, atol=1e-12)
    nothing = torch.full_like(bias, -torch.inf)
    assert linear_cross_entropy(hidden, weight, labels, nothing, block=50)[1].isnan()  # as F.cross_entropy says


def test_only_wanted_gradients_are_made():
    """A frozen head under LoRA has the largest of them."""
    (hidden, weight, bias), labels, grad = make(13)
    lse = torch.logsumexp(F.linear(hidden, weight, bias), 1)
    args = (grad, hidden.detach(), weight.detach(), bias.detach(), labels, lse.detach(), hidden.new_empty(0, 13), 100)
    for want in range(3):
        made = torch.ops.patchrec_fast.linear_cross_entropy_backward(*args, [each == want for each in range(3)])
        assert [each.numel() > 0 for each in made] == [each == want for each in range(3)]
    loss = linear_cross_entropy(hidden, weight.detach(), labels)
    loss.sum().backward()
    assert hidden.grad is not None


def test_autocast():
    """Logits in bfloat16, as of a linear layer, and gradients in the weight's float32."""
    parts, labels, grad = make(29, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        expected, expected_gradients = step(parts, labels, grad, dense)
        losses, gradients = step(parts, labels, grad)
        made = linear_cross_entropy(parts[0], parts[1], labels)
    assert made.dtype == torch.float32
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    assert (losses - exact(parts, labels, grad)[0]).abs().max() > 1e-4  # it did round
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2.0**-7, atol=2.0**-7 * theirs.abs().max().item())
    cast = [part.detach().bfloat16().requires_grad_() for part in parts]
    by_hand, gradients_by_hand = step(cast, labels, grad)
    assert all(torch.equal(a, b) for a, b in zip((losses, *gradients), (by_hand, *gradients_by_hand), strict=True))
    (gradient,) = torch.autograd.grad(made.sum(), parts[1])
    assert gradient.dtype == torch.float32


@pytest.mark.parametrize("align", [1, 8])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_registration(bias, keep, align, monkeypatch):
    monkeypatch.setattr(cross_entropy, "ALIGN", align)
    (hidden, weight, b), labels, _ = make(13, dtype=torch.float32, bias=bias)
    torch.library.opcheck(torch.ops.patchrec_fast.linear_cross_entropy, (hidden, weight, b, labels, 100, keep))


def test_other_numbers_of_rows_are_not_compiled_again():
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(linear_cross_entropy, backend=counter, fullgraph=True, dynamic=True)
    for rows in (13, 29, 31):
        (hidden, weight, bias), labels, grad = make(rows)
        made = torch.autograd.grad(compiled(hidden, weight, labels, bias), weight, grad)
        torch.testing.assert_close(made[0], exact((hidden, weight, bias), labels, grad)[1][1])
    assert counter.frame_count == 1


@pytest.mark.parametrize("label", [37, -1, -99])
def test_labels_out_of_range(label):
    (hidden, weight, _), labels, _ = make(13)
    labels[4] = label
    with pytest.raises(RuntimeError, match="out of bounds"):
        linear_cross_entropy(hidden, weight, labels)


def test_bad_arguments():
    (hidden, weight, _), labels, _ = make(13)
    with pytest.raises(ValueError, match=r"\(N, d\) and \(V, d\), got \(13, 4\) and \(37, 5\)"):
        linear_cross_entropy(hidden[:, :4], weight, labels)
    with pytest.raises(ValueError, match=r"one for each of the 13 rows, got \(12,\)"):
        linear_cross_entropy(hidden, weight, labels[1:])
    with pytest.raises(ValueError, match="from 1, got 0"):
        linear_cross_entropy(hidden, weight, labels, block=0)


def test_a_second_derivative_is_refused():
    (hidden, weight, _), labels, _ = make(13)
    (gradient,) = torch.autograd.grad(linear_cross_entropy(hidden, weight, labels).sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        gradient.sum().backward()
