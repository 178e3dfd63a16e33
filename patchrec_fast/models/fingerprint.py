# SPDX-License-Identifier: Apache-2.0
"""What a run depends on, so that none goes on with another model, other prompts or other data.

A fingerprint is a JSON object: what is small stands in it as it is, so that a difference can be named; the rest as a
SHA-256 digest. It knows content only, no paths: a run that is moved stays itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import _json
from ..data import Dataset
from ..layout.packing import Packer

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

Fingerprint = dict[str, Any]

# Of a configuration, besides names with an underscore in front (paths, the attention that `attach` sets): what says
# where it came from or how it is called, not what the model computes. The dtype is in the weights.
_FREE = {
    "architectures", "attn_implementation", "base_model_name_or_path", "dtype", "id2label", "inference_mode",
    "label2id", "output_attentions", "output_hidden_states", "peft_version", "return_dict", "revision", "torch_dtype",
    "transformers_version", "use_cache",
}  # fmt: skip
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
_UNREADABLE = (RuntimeError, TypeError, ValueError, AttributeError, OSError)


def of_model(model: nn.Module) -> Fingerprint:
    """Of a model: its class, weights, configuration and adapters.

    The weights are every byte of every parameter and buffer, each with its name, dtype and shape, wherever accelerate
    keeps them: about a second for a billion parameters in 16 bits. "weights_read" says of which of them only name,
    dtype and shape could be read, or this process's shard.
    """
    weights, read = _weights(model)
    return {
        "model": type(model).__name__,
        "weights": weights,
        "weights_read": read,
        "configuration": _configurations(model),
        "adapters": _adapters(model),
    }


def of_folder(folder: Path) -> Fingerprint:
    """Of a model folder in Hugging Face format, without its tokenizer: the files of its weights, its configurations."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in _WEIGHTS and path.name != "training_args.bin":
            digest.update(f"{path.name} {path.stat().st_size} ".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    found: Fingerprint = {"weights": digest.hexdigest()}
    for key, name in (("configuration", "config.json"), ("adapters", "adapter_config.json")):
        if (folder / name).is_file():
            found[key] = _kept(_json.load(folder / name, dict, "a configuration"))
    return found


def of_packer(packer: Packer) -> Fingerprint:
    """Of everything that decides the prompts and the answers."""
    catalogue, prompt = packer.catalogue, packer.prompt
    marks = np.array([prompt.separator, prompt.end_of_turn, prompt.separators])
    return {
        "titles": _digest((catalogue.item_ids,), catalogue.titles),
        "tokens of the titles": _digest((catalogue.token_ids, catalogue.offsets)),
        "prompt": _digest((prompt.prefix, prompt.suffix, marks)),
        "policy": plain(packer.policy),
        "max_items": packer.max_items,
        "items_step": packer.step,
    }


def of_samples(flat: NDArray[np.int64], offsets: NDArray[np.int64], targets: NDArray[np.int64]) -> str:
    """Of histories and targets, whole."""
    return _digest((flat, offsets, targets))


def of_dataset(dataset: Dataset) -> Fingerprint:
    """Of each field of a dataset but its own ids, by which nothing is learnt."""
    found = {}
    for name in ("items", "offsets", "titles", "splits"):
        value = getattr(dataset, name)
        parts = value if isinstance(value, Mapping) else {"": value}
        arrays = [np.asarray(part) for part in parts.values() if not isinstance(part, str)]
        words = [f"{key} {part}" if isinstance(part, str) else str(key) for key, part in parts.items()]
        found[name] = _digest(arrays, words)
    return found


def of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of a tokenizer's vocabulary and chat template."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: (entry[1], entry[0]))
    words = [f"{number} {token}" for token, number in vocabulary]
    return _digest((), [*words, json.dumps(tokenizer.chat_template, sort_keys=True)])


def differences(old: Any, new: Mapping[str, Any]) -> list[str]:
    """What two fingerprints differ in, in words: "the configuration: rms_norm_eps 1e-06 and not 1.0"."""
    if not isinstance(old, Mapping):
        return ["its form"]
    found = []
    for name in {**old, **new}:
        one, other = old.get(name), new.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += [f"the {name}: {inner.removeprefix('the ')}" for inner in differences(one, other)]
        elif one != other:
            digest = any(isinstance(each, str) and re.fullmatch("[0-9a-f]{64}", each) for each in (one, other))
            found.append(f"the {name}" if digest else f"{name} {_short(one)} and not {_short(other)}")
    return found


def plain(value: Any) -> Any:
    """An option, policy or configuration as a JSON value; equal ones, made in another process, become equal."""
    if value is None or isinstance(value, bool | int | str):
        return getattr(value, "value", value)  # an Enum's
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Tensor | np.ndarray):
        return _digest((np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value),))
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((plain(entry) for entry in value), key=repr)
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"class": type(value).__qualname__, **fields}
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _kept(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration decides what the model computes; null is as good as nothing, which versions differ in."""
    return {
        str(name): _kept(value) if isinstance(value, dict) else plain(value)
        for name, value in config.items()
        if value is not None and name not in _FREE and not str(name).startswith("_")
    }


def _configurations(model: nn.Module) -> dict[str, Any]:
    """Of the model and of its parts; a part's that is not in another has the part's name in front of its keys."""
    found: dict[str, Any] = {}
    seen: set[int] = set()
    for name, part in model.named_modules():
        config: Any = getattr(part, "config", None)
        if not hasattr(config, "to_dict") or id(config) in seen:
            continue
        waiting = [config]
        while waiting:
            one = waiting.pop()
            seen.add(id(one))
            waiting += [inner for inner in vars(one).values() if hasattr(inner, "to_dict") and id(inner) not in seen]
        found.update({f"{name}.{key}" if found else key: value for key, value in _kept(config.to_dict()).items()})
    return found


def _adapters(model: nn.Module) -> dict[str, Any]:
    """PEFT's configurations, by adapter, and which of them work how strongly in each layer."""
    found: dict[str, Any] = {}
    layers = []
    for name, part in model.named_modules():
        configs = getattr(part, "peft_config", None)
        if isinstance(configs, Mapping):
            found.update(
                {key: _kept(config.to_dict()) for key, config in configs.items() if hasattr(config, "to_dict")}
            )
        if hasattr(part, "active_adapters") and hasattr(part, "disable_adapters"):
            states = ("active_adapters", "disable_adapters", "merged_adapters", "scaling")
            layers.append([name, *(plain(state) for at in states if not callable(state := getattr(part, at, None)))])
    return {**found, "layers": _digest((), map(json.dumps, layers))} if found else {}


def _weights(model: nn.Module) -> tuple[str, str]:
    """The digest, and of what it is."""
    digest = hashlib.sha256()
    count, unread, shards = 0, 0, 0
    for prefix, module in model.named_modules():
        with ExitStack() as stack:
            _bring(module, stack)
            own = chain(module.named_parameters(prefix, recurse=False), module.named_buffers(prefix, recurse=False))
            for name, tensor in own:
                count += 1
                shards += hasattr(tensor, "placements")  # a DTensor
                about = name.encode()
                content = hashlib.sha256()
                try:
                    about += f" {tensor.dtype} {tuple(tensor.shape)}".encode()
                    for piece in _pieces(tensor):
                        content.update(f"{piece.dtype} {tuple(piece.shape)}".encode())
                        content.update(piece.reshape(-1).view(torch.uint8).numpy().data)
                except _UNREADABLE:
                    unread += 1
                    content = hashlib.sha256(b"not read")
                digest.update(about + content.digest())
    notes = [f"only name, dtype and shape of {unread} of {count}"] * bool(unread)
    notes += [f"this process's shards of {shards} of {count}"] * bool(shards)
    return digest.hexdigest(), ", ".join(notes) or "all"


def _bring(module: nn.Module, stack: ExitStack) -> None:
    """Has accelerate put the module's weights, which it keeps elsewhere, in place for a while."""
    if not getattr(getattr(module, "_hf_hook", None), "offload", False):
        return
    from accelerate.utils import align_module_device

    try:
        stack.enter_context(align_module_device(module, torch.device("cpu")))
    except _UNREADABLE:
        return  # they stay what they are, and count as not read


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors on the CPU, contiguous, that a tensor of any kind consists of."""
    if tensor.is_meta:
        raise ValueError("a meta tensor has no content")
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        inner = [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        inner = [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    elif tensor.layout == torch.sparse_coo:
        one = tensor.detach().coalesce()
        inner = [one.indices(), one.values()]
    elif hasattr(tensor, "__tensor_flatten__"):  # torchao's, DTensor: made of others
        inner = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    elif tensor.is_quantized:
        inner = [tensor.int_repr(), tensor.detach().dequantize()]
    elif tensor.is_mkldnn:
        inner = [tensor.to_dense()]
    else:
        yield tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        return
    for each in inner:
        yield from _pieces(each)


def _digest(arrays: Iterable[NDArray[Any]], words: Iterable[str] = ()) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update(json.dumps(list(words)).encode())  # escapes what UTF-8 has not, and says where a word ends
    return digest.hexdigest()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
