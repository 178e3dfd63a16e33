# SPDX-License-Identifier: Apache-2.0
"""A trained folder and its data -> a recommender: what `evaluate`, `recommend` and `profile` start with."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import TYPE_CHECKING, Any, get_args

from .._options import SAMPLE, Anchor
from ..train.recipes import POLICY_KEYS, Recipe
from .folders import folder
from .numbers import whole

if TYPE_CHECKING:
    import torch

    from ..data import Dataset
    from ..layout import Packer, Policy
    from ..layout.config import PromptConfig
    from ..recommend import Recommender

POLICIES = ("text", "pft-i", "pft-s")
DTYPES = ("float32", "bfloat16", "float16")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, its data, where it runs, and its prompts."""
    parser.add_argument(
        "--model", required=True, type=folder(), metavar="DIR", help="folder that patchrec-fast train wrote"
    )
    add_data_argument(parser)
    add_device_arguments(parser)
    add_prompt_arguments(parser)


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    """What of a model's own prompts is to be another; each of these is None where it is not given."""
    add = parser.add_argument_group("prompts other than those that the model was trained on").add_argument
    add("--policy", choices=POLICIES, help="what histories become")
    add("--keep", type=whole(0), metavar="N", help="items that pft-i keeps as text (of a model without: 5)")
    add("--group", type=whole(1), metavar="N", help="items of a session of pft-s (of a model without: 5)")
    add("--patch-step", type=whole(1), metavar="N", help="titles become patches of pft-i so many at a time")
    add("--anchor", choices=get_args(Anchor), help="which item the sessions of pft-s are counted from")
    add("--max-items", type=whole(0), metavar="N", help="newest items of a history; 0 for all")
    add("--items-step", type=whole(1), metavar="N", help="the oldest items leave so many at a time")


def add_data_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        required=True,
        type=folder(SAMPLE),
        metavar="DIR",
        help=f'folder in the prepared format; "{SAMPLE}" for the generated dataset',
    )


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--device", default="auto", help='such as "cpu" or "cuda:1" (default: the GPU where there is one)')
    kept = "as they were saved, float32 as bfloat16 on a GPU"
    add("--dtype", choices=DTYPES, help=f"of the weights (default: {kept})")


def open_recommender(options: argparse.Namespace) -> tuple[Recommender, Dataset]:
    """The recommender of these options, and the data that its titles are of.

    Raises:
        OSError: no such folder, or a file of it is missing.
        ValueError: a damaged file, or one of another model; a flag that the policy has no field for.
    """
    from ..data.tables import OLDER
    from ..layout.config import PromptConfig
    from ..models import open_trained
    from ..recommend import Recommender
    from ..train.start import open_data

    settings = overridden(PromptConfig.load(options.model), options)
    dataset = open_data(options.data)
    if dataset.item_ids.first:
        print(OLDER, file=sys.stderr)
    model, tokenizer = open_trained(options.model, options.dtype or "auto")
    packer = settings.packer(dataset.titles, tokenizer, dataset.item_ids)
    return Recommender(placed(model, options), packer), dataset


def overridden(settings: PromptConfig, options: argparse.Namespace) -> PromptConfig:
    """The settings of a model with the flags that were given, field by field.

    Raises:
        ValueError: a flag that the policy has no field for.
    """
    policy: Any = settings.policy
    if options.policy is not None and type(policy) is not type(other := Recipe().stage(options.policy).final):
        policy = other
    given = {}
    for name in ("keep", "patch_step", "group", "anchor"):
        field = next((own for own, key in POLICY_KEYS.items() if key == name), name)
        if (value := getattr(options, name)) is None:
            continue
        if not hasattr(policy, field):
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag}: the policy is {policy!r}, which has no {field}; --policy chooses another")
        given[field] = value
    changed: dict[str, Any] = {"policy": dataclasses.replace(policy, **given)}
    if options.max_items is not None:
        changed["max_items"] = options.max_items or None
    if options.items_step is not None:
        changed["step"] = options.items_step
    return dataclasses.replace(settings, **changed)


def tell(policy: Policy, max_items: int | None, step: int = 1) -> None:
    """A line on stderr of the prompts that are used; stdout has the result alone."""
    print(prompt_line(policy, max_items, step), file=sys.stderr)


def prompt_line(policy: Policy, max_items: int | None, step: int = 1) -> str:
    most = "" if max_items is None or step == 1 else f" to {max_items + step - 1}"
    items = "all items" if max_items is None else f"newest {max_items}{most} items"
    return f"prompt: {policy!r}, {items}"


def plain(packer: Packer) -> dict[str, Any]:
    """The same as JSON values."""
    return {"policy": repr(packer.policy), "max_items": packer.max_items, "items_step": packer.step}


def placed(model: Any, options: argparse.Namespace) -> Any:
    """The model on the device that the options name.

    The kernels that read packed prompts on a GPU take half precision: float32 weights, as training saves them, would
    have every row attend to every other through a dense mask. So they go there in bfloat16, unless --dtype says other.
    """
    import torch

    place = device(options.device)
    half = options.dtype is None and place.type != "cpu" and model.dtype == torch.float32
    if half:
        print("weights: bfloat16 (--dtype float32 keeps them as they were saved)", file=sys.stderr)
    return model.to(place, torch.bfloat16 if half else None)


def device(name: str) -> torch.device:
    """A device by name; "auto" is the GPU where there is one.

    Raises:
        ValueError: no such device here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name).item()
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        raise ValueError(f"--device: {name!r} cannot be used here ({error})") from error
    return torch.device(name)
