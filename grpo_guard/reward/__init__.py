"""Images -> scores. A reward is either trained on (a proxy) or only looked at (a gold); the class is the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.types import Prompt, Rewards

Scorer = Callable[[Float[Tensor, "B 3 H W"], Sequence[Prompt]], Rewards]
"""Scores images in [0, 1], one prompt per image."""


@runtime_checkable
class Reward(Protocol):
    """What a run is told about its reward; nothing is loaded before `load`."""

    @property
    def compares(self) -> bool:
        """Whether a score depends on the other pictures of the prompt, which are then brought together."""

    def accepts(self, prompt: Prompt) -> bool:
        """Whether this reward can score an image of the prompt; other prompts are never drawn."""

    def load(self, device: torch.device) -> Scorer:
        """Load weights; raises ConfigError, naming the key and the remedy, where they are missing."""


def rewards(**parts: Float[Tensor, " B"]) -> Rewards:
    """Rewards whose total is the first part; a NaN there is a failure."""
    name, total = next(iter(parts.items()))
    return Rewards(total=total, parts=parts, weights={name: 1.0}, failed=total.isnan())


def noted(found: Sequence[Rewards]) -> tuple[tuple[str, ...], ...]:
    """The notes of parts of a batch, in order; nothing on the images of a part that has none, unless none has any."""
    given = [part.notes or ((),) * len(part.total) for part in found]
    return (
        tuple(lines for part in given for lines in part)
        if any(part.notes for part in found)
        else ()
    )


def scored(images: Float[Tensor, "B 3 H W"], **parts: Float[Tensor, " B"]) -> Rewards:
    """`rewards` on the images' device, where an image that is not finite has failed whatever was seen in it."""
    broken = ~images.isfinite().flatten(1).all(1)
    return rewards(
        **{
            name: part.to(images.device).masked_fill(broken, math.nan)
            for name, part in parts.items()
        }
    )
