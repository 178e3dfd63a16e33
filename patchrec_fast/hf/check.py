# SPDX-License-Identifier: Apache-2.0
"""Whether a model reads a packed batch as each of its prompts alone: found out by trying it.

What a model does with positions, masks, token ids and states is its class's business, and no list of families holds
for the next release, remote code or a patched module. So `attach` lets the model itself read two short prompts, first
each alone as it was, through `input_ids`, then packed, then as a tree of prompts that share rows, and compares all
logits and the loss. It is the user's own weights that run, not a small twin of the class: a twin would know nothing of
patches, adapters and quantisation. That is eleven calls of a few rows, once for each class, configuration and set of
forwards.

Fresh weights are small and low precision is coarse: what leaks from prompt to prompt may be less than what packing
rounds otherwise. So the first prompt's tokens are also replaced: the second one's rows then go through the very same
kernels at the same shapes, and a bit of theirs that changes is told of the first prompt. Where a layer groups rows by
what they are (experts, a scale of a whole tensor), rounding may change too; then the rows of a plain batch, which
nothing mixes, show how far (`_beyond_rounding`). In a tree, rows that a prompt does not see are replaced in the same
way, and rows that it sees: these must be told.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..layout.batch import PackedBatch
from ..ops.attention import Segments
from .decode_cache import DynamicCache, Rows
from .masks import checking
from .modules import inner_of

_LENGTHS = (5, 8, 5)  # rows of the two prompts, and of another first one
_LEARNT = 3  # the last of them are supervised
_SHARED = 3  # the first of the second prompt, with which another begins
_READS_IDS = "it reads input_ids besides their embeddings, which rows that are patches do not have"
_MIXES = "a prompt's logits depend on the prompt before it: its layers mix them"
_passed: set[Any] = set()

Call = Callable[..., Any]


def key(model: Any, attention: str) -> Any:
    """What the answer depends on: classes and forwards of all modules, the configuration, dtypes, the attention."""
    forwards = frozenset((type(part), type(part).forward, _own_forward(part)) for part in model.modules())
    dtypes = frozenset((part.dtype, part.device.type) for part in model.parameters())
    return type(model), forwards, model.config.to_json_string(use_diff=False), dtypes, attention


def _own_forward(module: nn.Module) -> Any:
    forward = vars(module).get("forward")
    return getattr(forward, "__func__", getattr(forward, "__qualname__", None))


def can_run(model: nn.Module) -> bool:
    """Whether all weights are here: not on meta (unless a hook fetches them), and in no shard."""
    fetched = any(hasattr(part, "_hf_hook") for part in model.modules())
    for part in model.parameters():
        if hasattr(part, "ds_id") or hasattr(part, "_local_tensor") or (part.is_meta and not fetched):
            return False
    return True


def passed(made: Any) -> bool:
    """Whether this key has passed before."""
    return made in _passed


def alone(model: Any, call: Call | None = None) -> tuple[list[Tensor], Tensor]:
    """Each prompt by itself: its logits (n, V), and the loss over the supervised rows of both.

    Args:
        call: calls the model; None is the model itself.

    Raises:
        ValueError: the model does not take such a call.
    """
    tried = _Tried(model, call)
    with quiet(model), _Lookups(model) as lookups:
        prompts = _prompts(model)[:2]
        logits = [tried.logits("a plain call", input_ids=ids.unsqueeze(0), use_cache=False) for ids in prompts]
    if any(torch.equal(ids.cpu(), each) for ids in prompts for each in lookups.read if len(ids.unique()) > 1):
        raise ValueError(_refusal(model, _READS_IDS))
    losses = [
        F.cross_entropy(made[-_LEARNT - 1 : -1], ids[-_LEARNT:].to(made.device), reduction="none")
        for made, ids in zip(logits, prompts, strict=True)
    ]
    return logits, torch.cat(losses).mean()


def compare(model: Any, expected: tuple[list[Tensor], Tensor], made: Any, tree: bool, call: Call | None = None) -> None:
    """Lets the attached model read both prompts packed; `expected` is what `alone` gave, `made` its key.

    Args:
        tree: whether its attention is said to serve prompts that share rows; otherwise such a batch is an error.

    Raises:
        ValueError: it reads them otherwise, and what differs.
    """
    tried, (logits, loss) = _Tried(model, call), expected
    with quiet(model):
        *prompts, other = _prompts(model)
        batch = _packed(prompts)
        inputs = batch.model_inputs()
        labels = {name: inputs.pop(name) for name in ("labels", "supervised_rows")}
        rows = tried.logits("a packed call", **inputs)
        if _off(rows, torch.cat(logits)) > tried.tolerance:
            raise ValueError(_refusal(model, _reason(tried, model, rows, other, logits, prompts)))
        if _mixes(tried, rows, other, prompts):
            raise ValueError(_refusal(model, _MIXES))
        plain = tried.logits("a plain call", input_ids=prompts[1].unsqueeze(0), use_cache=False)
        if _off(plain, logits[1]) > tried.tolerance:
            raise ValueError(_refusal(model, "with its attention set to another, plain calls come out otherwise too"))
        out = tried("a packed call with labels", **inputs, **labels)
        if getattr(out, "aux_loss", None) is None and _off(out.loss, loss, spread=False) > tried.tolerance:
            raise ValueError(_refusal(model, f"its loss of them is {float(out.loss):.4g}, expected {float(loss):.4g}"))
        if tree and (reason := _misread_tree(tried, other, prompts, logits[1])):
            raise ValueError(_refusal(model, f"of prompts that share rows, {reason}"))
    if all(torch.isfinite(each).all() for each in logits):  # otherwise nothing was compared: the next one is tried
        _passed.add(made)


def check_decoding(model: Any, made: Any) -> None:
    """That rows of a tree behind packed prompts give the logits of the whole prompts, read alone.

    Args:
        model: attached with attention of ours.

    Raises:
        ValueError: they do not.
    """
    tried = _Tried(model)
    with quiet(model):
        prompts = _prompts(model)[:2]
        expected = [tried.logits("a plain call", input_ids=ids.unsqueeze(0), use_cache=False)[-2:] for ids in prompts]
        batch = _packed([ids[:-2] for ids in prompts])
        lengths = batch.cu_seqlens.diff()
        cache = DynamicCache(lengths.tolist(), lengths.device)
        inputs = batch.model_inputs()
        del inputs["labels"], inputs["supervised_rows"]
        tried.logits("a packed call", **inputs, kv_cache=cache)
        user = torch.tensor([0, 0, 1, 1], device=lengths.device)
        depth = torch.tensor([1, 2, 1, 2], device=lengths.device)
        path = torch.tensor([[2, -1], [2, 3], [4, -1], [4, 5]], device=lengths.device)
        cache.begin(Rows(path, torch.tensor([0, 2, 4], dtype=torch.int32).to(path.device), 2))
        found = tried.logits(
            "a call that decodes",
            input_ids=torch.cat([ids[-2:] for ids in prompts]).unsqueeze(0),
            position_ids=(lengths[user] + depth - 1).unsqueeze(0),
            kv_cache=cache,
            use_cache=False,
        )
    if _off(found, torch.cat(expected)) > tried.tolerance:
        raise ValueError(
            f"model: {type(inner_of(model)).__name__} cannot decode over a catalogue: the logits behind a prompt whose "
            "keys and values are kept are not those of the whole prompt"
        )
    _passed.add(made)


def _mixes(tried: "_Tried", rows: Tensor, other: Tensor, prompts: list[Tensor]) -> bool:
    """Whether the second prompt's logits change with the first prompt's tokens, by more than rounding.

    Args:
        rows: (R, V) logits of `prompts`, packed.
        other: (5,) a first prompt of the same length.
    """
    second = prompts[1]
    replaced = tried.logits("a packed call", **_inputs([other, second]))
    change = _off(replaced[-len(second) :], rows[-len(second) :])
    return _beyond_rounding(tried, change, second, torch.cat([other, prompts[0], second]))


def _misread_tree(tried: "_Tried", other: Tensor, prompts: list[Tensor], whole: Tensor) -> str | None:
    """What is wrong with the logits of two prompts that begin alike, where the second one's own rows are a segment.

    Args:
        other: (5,) rows to put in the place of others.
        whole: (8, V) logits of the second of `prompts`, read alone.
    """
    leaf, trunk = prompts
    branch = torch.cat([trunk[:_SHARED], leaf])
    expected = tried.logits("a plain call", input_ids=branch.unsqueeze(0), use_cache=False)[_SHARED:]
    what = "a packed call of prompts that share rows"
    rows = tried.logits(what, **_inputs([trunk, leaf], _SHARED))
    if _off(rows, torch.cat([whole, expected])) > tried.tolerance:
        return "the logits are not those of each alone"
    own = rows[len(trunk) :]
    unseen = tried.logits(what, **_inputs([torch.cat([trunk[:_SHARED], other]), leaf], _SHARED))[len(trunk) :]
    if _beyond_rounding(tried, _off(unseen, own), branch, torch.cat([other, leaf, trunk])):
        return "one's logits depend on rows of another that it does not see"
    seen = tried.logits(what, **_inputs([torch.cat([other[:_SHARED], trunk[_SHARED:]]), leaf], _SHARED))[len(trunk) :]
    if torch.equal(seen, own):
        ids = torch.cat([other[:_SHARED], leaf]).unsqueeze(0)
        if not torch.equal(tried.logits("a plain call", input_ids=ids, use_cache=False)[_SHARED:], expected):
            return "one's logits do not depend on the rows that it shares"
    return None


def _beyond_rounding(tried: "_Tried", change: float, second: Tensor, neighbours: Tensor) -> bool:
    """Whether a prompt's logits have changed by more than those of its rows in plain batches, beside whatever is there.

    Args:
        second: (8,) the prompt.
        neighbours: tokens of others, which stand at different places.
    """
    if change == 0:
        return False
    found = []
    for turn in range(3):
        batch = torch.stack([second, *(neighbours.roll(5 * turn + k)[: len(second)] for k in (0, 1))])
        found.append(tried.logits("a plain call", input_ids=batch, use_cache=False))
    rounding = max(_off(each, found[0]) for each in found[1:])
    floor = 16 * torch.finfo(torch.float32).eps if tried.exact else 0.0  # a few float32 sums in another order
    return change > max(8 * rounding, floor)


def _reason(
    tried: "_Tried", model: Any, rows: Tensor, other: Tensor, logits: list[Tensor], prompts: list[Tensor]
) -> str:
    """What differs, by trying parts of it."""
    last = prompts[1].unsqueeze(0)
    embedded = model.get_input_embeddings()(last)
    if _off(tried.logits("a plain call", inputs_embeds=embedded, use_cache=False), logits[1]) > tried.tolerance:
        return _READS_IDS
    once = tried.logits("a packed call", **_inputs([prompts[1]]))
    if _off(once, logits[1]) > tried.tolerance:
        return "even one prompt comes out otherwise (its attention, mask or positions are not what it is told)"
    if _mixes(tried, rows, other, prompts):
        return _MIXES
    return "the second prompt comes out otherwise: it counts positions by itself"


def _refusal(model: Any, reason: str) -> str:
    return f"model: {type(inner_of(model)).__name__} does not read packed prompts as each alone: {reason}"


class _Tried:
    """The model, whose every failure is a ValueError."""

    def __init__(self, model: Any, call: Call | None = None) -> None:
        self._model, self._call = model, model if call is None else call
        self._autocast = False

    @property
    def exact(self) -> bool:
        """Whether it computes in float32, or finer."""
        dtypes, device = {part.dtype for part in self._model.parameters()}, next(self._model.parameters()).device
        coarse = self._autocast or (device.type != "cpu" and torch.backends.cuda.matmul.allow_tf32)
        return dtypes <= {torch.float32, torch.float64} and not coarse

    @property
    def tolerance(self) -> float:
        """Far above what rounding does to logits, deep models and TF32 included, and below what other positions do."""
        return 1e-3 if self.exact else 0.1

    def _look(self, module: nn.Module, args: Any) -> None:
        """Inside the model's call, which may have an autocast of its own (accelerate's mixed precision)."""
        self._autocast |= torch.is_autocast_enabled(next(self._model.parameters()).device.type)

    def __call__(self, what: str, **inputs: Any) -> Any:
        hook = self._model.get_input_embeddings().register_forward_pre_hook(self._look)
        try:
            return self._call(**inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # another's code, which may raise anything
            reason = f"{what} fails with {type(error).__name__}: {error}"
            raise ValueError(_refusal(self._model, reason)) from error
        finally:
            hook.remove()

    def logits(self, what: str, **inputs: Any) -> Tensor:
        """(rows, V) of at least float32."""
        logits = self(what, **inputs).logits[0]
        return logits if logits.dtype == torch.float64 else logits.float()


def _off(found: Tensor, expected: Tensor, spread: bool = True) -> float:
    """The difference's size relative to that of what is expected, of logits less each row's mean."""
    a, b = found.double().cpu(), expected.double().cpu()
    if a.shape != b.shape:
        return float("inf")
    size = (b - b.mean(-1, keepdim=True)).norm() if spread else b.abs()
    return float((a - b).norm() / size.clamp(min=1e-30)) if torch.isfinite(b).all() else 0.0


def _inputs(prompts: list[Tensor], shared: int = 0) -> dict[str, Any]:
    """Of the prompts packed; or of two segments, of which the second sees so many rows of the first."""
    batch = _packed(prompts)
    if shared:
        segments = Segments.of(batch.cu_seqlens.cpu(), torch.tensor([-1, 0]), torch.tensor([0, shared]))
        parts = segments.to(batch.ids.device)
        batch = replace(
            batch,
            position_ids=parts.position_ids,
            labels=None,
            parent=parts.parent,
            visible=parts.visible,
            leaves=torch.arange(2, device=batch.ids.device),
            longest=int(segments.position_ids.max()) + 1,
            levels=segments.levels,
        )
    inputs = batch.model_inputs()
    return {name: value for name, value in inputs.items() if name not in ("labels", "supervised_rows")}


def _packed(prompts: list[Tensor]) -> PackedBatch:
    ids, device = torch.cat(prompts), prompts[0].device
    lengths = torch.tensor([len(each) for each in prompts])
    rows = torch.arange(len(ids) + 1, dtype=torch.int32)
    labels = torch.cat([F.pad(each[-_LEARNT:].long(), (len(each) - _LEARNT, 0), value=-100) for each in prompts])
    return PackedBatch(
        ids=ids.int(),
        offsets=(rows, rows),
        cu_seqlens=F.pad(lengths.cumsum(0), (1, 0)).int(),
        max_seqlen=int(lengths.max()),
        position_ids=torch.cat([torch.arange(length) for length in lengths.tolist()]),
        labels=labels,
    ).to(device)


def _prompts(model: Any) -> list[Tensor]:
    """The two prompts and another first one: token ids that differ and have no meaning of their own (padding, images),
    on the embedding's device.
    """
    embedding = model.get_input_embeddings()
    size = getattr(embedding, "num_embeddings", None) or model.config.get_text_config().vocab_size
    weight = next(iter(embedding.parameters()))
    special: set[int] = set()
    for config in (model.config, model.config.get_text_config()):
        for name, value in vars(config).items():
            if name.endswith(("_token_id", "_token_index", "_token_ids")):
                special.update(each for each in (value if isinstance(value, list) else [value]) if type(each) is int)
    if type(getattr(embedding, "padding_idx", None)) is int:
        special.add(embedding.padding_idx)
    usable = [each for each in range(min(size, 4096)) if each not in special] or [0]
    count = sum(_LENGTHS)
    ids = [usable[(7 + 3 * place) % len(usable)] for place in range(count)]
    device = torch.device("cpu") if weight.is_meta else weight.device
    bounds = [0, *accumulate(_LENGTHS)]
    return [torch.tensor(ids[a:b], device=device) for a, b in pairwise(bounds)]


class _Lookups(TorchFunctionMode):
    """What is looked up in tables besides the input embedding: in a fresh model their weights may be zero.

    Attributes:
        read: the indices, each (n,) on the host.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.read: list[Tensor] = []
        self._own, self._inside = model.get_input_embeddings(), False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.embedding and not self._inside:
            self.read.append(args[0].flatten().cpu())
        return func(*args, **(kwargs or {}))

    def _turn(self, *_: Any) -> None:
        self._inside = not self._inside

    def __enter__(self) -> "_Lookups":
        self._hooks = [self._own.register_forward_pre_hook(self._turn), self._own.register_forward_hook(self._turn)]
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        for hook in self._hooks:
            hook.remove()


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, without gradients, uncompiled; training flags and random numbers are as they were after."""
    training = [part for part in model.modules() if part.training]
    devices = sorted({part.device.index for part in model.parameters() if part.device.type == "cuda"})
    for part in training:
        part.training = False
    watched = checking.set(True)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        checking.reset(watched)
        for part in training:
            part.training = True
