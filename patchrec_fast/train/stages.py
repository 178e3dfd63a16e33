# SPDX-License-Identifier: Apache-2.0
"""The stages of training: which policy the histories of a step are packed with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .._options import STAGES, Anchor
from ..layout import Dropout, ItemPatches, Policy, RandomItemPatches, SessionPatches, Text


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
        name: one of `STAGES`, or the caller's own.
        final: the policy, a deterministic one, that the trained model is used with: validation, and `patchrec.json`.
            Also the policy of every step, unless `draw` is given.
        draw: makes a random policy of a probability, for stages whose steps are not packed as `final`.
        p: that probability; None lets it rise with the progress of training.
        twin: each sequence comes a second time as text, so that the loss is the mean of both.
        titles: titles are learnt where they stand in a text history (`patchrec_fast.layout.titles`), several in one
            prompt; none follows a prompt as its answer.
    """

    name: str
    final: Policy
    draw: Callable[[float], Policy] | None = None
    p: float | None = None
    twin: bool = False
    titles: bool = False

    def __post_init__(self) -> None:
        self.policy(0.0)  # a wrong p is an error now, not at the first step

    def policy(self, progress: float) -> Policy:
        """The policy of an optimizer step, where `progress` (0 at the first) is step / total steps."""
        if self.draw is None:
            return self.final
        return self.draw(progress if self.p is None else self.p)

    @property
    def longest(self) -> Policy:
        """A deterministic policy under which no prompt has fewer rows than in any step."""
        return self.final if self.draw is None else Text()


def stage(
    name: str,
    *,
    keep: int = 5,
    group: int = 5,
    p: float | None = None,
    patch_step: int = 1,
    anchor: Anchor = "newest",
) -> Stage:
    """A stage by its name.

    "text" is the uncompressed baseline. "pft-i" and "pft-s" are patch fine-tuning on item and on session patches.
    "pretrain" is patch pre-training: each item is a patch with probability p, and every such sequence has its text
    twin. "dropout" is the ablation of the paper's Table 4: pre-training with the chosen items left out instead. As
    there, models of both are used, and validated, on text. "history" is not the paper's: every title is learnt where
    it stands in a text history, the cheapest first stage of a model from scratch, which another stage then teaches to
    answer.

    By default p = step / total, over the real number of optimizer steps and counted from 0: the first step is all
    text, and the last one has p = 1 - 1 / total. (The released trainer divides by -1 and never compresses.)

    Args:
        name: one of `STAGES`.
        keep: the newest items that "pft-i" keeps as text; the paper's N.
        group: the items of a session of "pft-s"; the paper's g.
        p: a constant probability for "pretrain" and "dropout", in place of the rising one.
        patch_step: `ItemPatches.step` of "pft-i".
        anchor: `SessionPatches.anchor` of "pft-s".

    Raises:
        ValueError: an unknown name; keep, group, p, patch_step or anchor out of range.
        TypeError: keep or group that is not an int, p that is not a number.
    """
    if name == "text":
        return Stage(name, Text())
    if name == "pretrain":
        return Stage(name, Text(), RandomItemPatches, p, twin=True)
    if name == "dropout":
        return Stage(name, Text(), Dropout, p, twin=True)
    if name == "pft-i":
        return Stage(name, ItemPatches(keep, patch_step))
    if name == "pft-s":
        return Stage(name, SessionPatches(group, anchor))
    if name == "history":
        return Stage(name, Text(), titles=True)
    raise ValueError(f"stage: expected one of {', '.join(STAGES)}, got {name!r}")
