# SPDX-License-Identifier: Apache-2.0
"""A model and its tokenizer, opened by folder or hub name.

A folder comes from somewhere else. Nothing of it is run (no code of its own, no pickle), and nothing that it lacks is
made up: where transformers would begin a missing tensor at random, that is an error here. Whatever transformers raises
on a damaged file comes as a ValueError that names the folder and the file.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._folders import is_local
from .._options import SAMPLE
from ..data import sample_tokenizer
from ..layout import Prompt
from ..layout.config import PromptConfig
from ..layout.prompt import END, SEPARATOR, START

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Name = str | os.PathLike[str]
_CONFIG, _GENERATION, _INDEX = "config.json", "generation_config.json", "model.safetensors.index.json"
_TOKENIZER = ("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json")


def open_model(
    name: Name, dtype: torch.dtype | str = "auto", *, hub: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model, in evaluation mode on the CPU, and its tokenizer.

    Args:
        name: a folder in Hugging Face format; with `hub` also a hub name, "owner/name".
        dtype: of the weights; "auto" as they were saved.
        hub: look on the hub for a name that can be no folder's. Without a network what was downloaded before serves.

    Raises:
        FileNotFoundError: no such folder, or a file of it is missing.
        OSError: the hub does not have it, or does not answer.
        ValueError: a damaged file; weights that lack a tensor of the model, have one too many or of another shape;
            weights in pickles only; adapters without their model; a model that needs code of its own; a tokenizer of
            another model. The message names the folder.
    """
    local = is_local(name, hub, "model")
    model = _model(name, dtype, local)
    tokenizer = _tokenizer(name, local)
    added = tokenizer.added_tokens_decoder
    _check_ids(name, model, (at for at in tokenizer.get_vocab().values() if at not in added))
    return model, tokenizer


def open_trained(folder: Name, dtype: torch.dtype | str = "auto") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """`open_model` of a folder that `train` wrote: it knows the marks of a prompt already.

    Raises:
        FileNotFoundError, ValueError: as `open_model`; no `patchrec.json`, or a damaged one; a model or tokenizer
            without the marks; a chat template that cannot make the prompt.
    """
    settings = PromptConfig.load(folder)
    model, tokenizer = open_model(folder, dtype)
    vocabulary = tokenizer.get_vocab()
    if missing := [mark for mark in (START, END, SEPARATOR) if mark not in vocabulary]:
        raise ValueError(
            f"{folder}: its tokenizer.json has no {', '.join(missing)}, the marks of a prompt that training adds; "
            "it is not the tokenizer that the model was trained with"
        )
    _check_ids(folder, model, vocabulary.values())
    with _of(folder, "no prompt can be made of patchrec.json, tokenizer_config.json and its chat template"):
        settings.prompt(tokenizer)
    return model, tokenizer


def open_tokenizer(name: Name, *, hub: bool = False) -> PreTrainedTokenizerBase:
    """A tokenizer alone.

    Raises:
        FileNotFoundError, OSError, ValueError: as `open_model`.
    """
    return _tokenizer(name, is_local(name, hub, "tokenizer"))


def _tokenizer(name: Name, local: bool) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    _check_json(name, "tokenizer", _TOKENIZER)
    with _of(name, "no tokenizer can be made of tokenizer.json and tokenizer_config.json"):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, local_files_only=local)
        tokenizer(["a title"], add_special_tokens=False)
    return tokenizer


def tokenizer_for(name: Name, titles: Mapping[int, str], *, hub: bool = False) -> PreTrainedTokenizerBase:
    """`open_tokenizer`, or a small one that is trained on the titles for "sample"."""
    return sample_tokenizer(titles.values()) if name == SAMPLE else open_tokenizer(name, hub=hub)


def fit_vocabulary(model: PreTrainedModel, prompt: Prompt) -> None:
    """Gives the model embeddings of the prompt's marks, in place, where it has too few."""
    if model.get_input_embeddings().num_embeddings < prompt.num_embeddings:
        model.resize_token_embeddings(prompt.num_embeddings)


def _model(name: Name, dtype: torch.dtype | str, local: bool) -> PreTrainedModel:
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    if (Path(name) / "adapter_config.json").is_file():
        raise _adapters(name)
    _check_json(name, "model", (_CONFIG, _GENERATION))
    where: dict[str, Any] = {"local_files_only": local}
    with _of(name, "no model can be made of config.json"):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **where)
    if Path(name).is_dir():
        _check_weights(Path(name), config)
        if (Path(name) / _GENERATION).is_file():
            with _of(name, "generation_config.json is damaged"):
                GenerationConfig.from_pretrained(name, **where)
    with _of(name, "no model can be made of config.json and the weights (*.safetensors)"), _silent():
        model, found = AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they come in `found`
            output_loading_info=True,
            **where,
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise _adapters(name)
    _check_tensors(name, found)
    return model.eval()


def _check_json(name: Name, what: str, files: Iterable[str]) -> None:
    """A folder has the first of the files, and those that it has are JSON objects."""
    folder = Path(name)
    if not folder.is_dir():
        return  # of the hub
    needed, *_ = files = tuple(files)
    if not (folder / needed).is_file():
        raise FileNotFoundError(f"{folder} has no {needed}, expected a folder of a Hugging Face {what}")
    for file in files:
        if (folder / file).is_file():
            _object(folder / file)


def _object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(content).__name__}")
    return content


def _check_weights(folder: Path, config: Any) -> None:
    """Every file of weights is whole and is no pickle; there are tensors enough for the layers of `config`."""
    from safetensors import SafetensorError, safe_open

    tensors = 0
    for file in _files(folder):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file, but {_INDEX} names it")
        try:
            with safe_open(file, framework="pt") as opened:
                tensors += len(opened.keys())
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file}: a file of weights is damaged ({error})") from error
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if isinstance(layers, int) and layers > tensors:  # building them could take all memory
        raise ValueError(f"{folder}: config.json says {layers} layers, the weights have {tensors} tensors")


def _files(folder: Path) -> list[Path]:
    """The safetensors of a folder."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not (folder / _INDEX).is_file():
        pickles = [path.name for path in sorted(folder.glob("*.bin")) if "model" in path.name]
        if pickles:
            raise ValueError(
                f"{folder}: its weights are pickles ({pickles[0]}), which can run code and are never opened; convert "
                "them where they come from: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
            )
        raise FileNotFoundError(f"{folder}: no model.safetensors there, expected the weights of a model")
    names = _object(folder / _INDEX).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{folder / _INDEX}: expected a weight_map, tensor -> file")
    files = sorted(set(names.values()))
    if any(Path(file).name != file for file in files):
        raise ValueError(f"{folder / _INDEX}: expected files of its own folder, got {files}")
    return [folder / file for file in files]


def _check_tensors(name: Name, found: dict[str, Any]) -> None:
    """An error for what transformers found; it left out what is fine: tied weights, buffers that are computed."""
    shapes = [f"{key} {tuple(there)} and not {tuple(wanted)}" for key, there, wanted in found["mismatched_keys"]]
    wrong = {
        "they lack": found["missing_keys"],
        "config.json knows no": found["unexpected_keys"],
        "of another shape are": shapes,
        "not read were": found["error_msgs"],
    }
    said = [f"{what} {_some(keys)}" for what, keys in wrong.items() if keys]
    if said:
        raise ValueError(f"{name}: its weights (*.safetensors) are not those of config.json: {'; '.join(said)}")


def _some(keys: Iterable[str]) -> str:
    first, *more = sorted(keys)
    return f"{', '.join([first, *more[:2]])}{f' and {len(more) - 2} more' if len(more) > 2 else ''}"


def _check_ids(name: Name, model: PreTrainedModel, ids: Iterable[int]) -> None:
    rows, largest = model.get_input_embeddings().num_embeddings, max(ids)
    if largest >= rows:
        raise ValueError(
            f"{name}: tokenizer.json has a token {largest}, the model has {rows} embeddings; it is the tokenizer of "
            "another model"
        )


def _adapters(name: Name) -> ValueError:
    return ValueError(
        f"{name}: it holds adapters (adapter_config.json), not a model; merge them into theirs first: "
        "PeftModel.from_pretrained(...).merge_and_unload().save_pretrained(...)"
    )


@contextmanager
def _of(name: Name, what: str) -> Iterator[None]:
    """Whatever is raised inside, by code that is not ours on files that are not ours, names the folder."""
    try:
        yield
    except ImportError:  # a package that this model needs
        raise
    except Exception as error:
        text = str(error).strip().partition("\n")[0]
        if "trust_remote_code" in str(error):
            what, text = "it needs code of its own", "auto_map in config.json; code of a model is never run"
        kind = OSError if isinstance(error, OSError) else ValueError
        said = text if len(text) <= 200 else f"{text[:200]}..."
        raise kind(f"{name}: {what} ({type(error).__name__}: {said})") from error


@contextmanager
def _silent() -> Iterator[None]:
    """Without transformers' own table of the tensors that do not fit, and its bars in a log file."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    if sys.stderr is None or not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
