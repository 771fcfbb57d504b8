"""Rewards score images. A run trains on one reward and may evaluate with any number of others.

How to add a reward; `checker.py` is a short example without weights, `aesthetic.py` one with them:

1. Write `grpo_guard/reward/<name>.py` with a component that has the members of `Reward` below.
   Its fields are its settings. Making the component must be cheap: no weights and no network.
2. Write `conf/reward/<name>.yaml` with `_target_: grpo_guard.reward.<name>.<Class>` and its fields.
3. Train on it with `reward=<name>`, or only evaluate with it: `+reward@eval.gold.<name>=<name>`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.types import Prompt, Rewards

Scorer = Callable[[Float[Tensor, "B 3 H W"], Sequence[Prompt]], Rewards]
"""(images, prompts) -> scores.

Images are floats in [0, 1] of any height and width, in RGB, on the run's device. There are B of
them and B prompts, image i being a sample of prompt i. Scores are floats of shape (B,): higher is
better, in any unit, and NaN for an image that cannot be scored. Return them with `make_rewards`.
Gradients are not needed: put `torch.no_grad()` around a network.
"""


@runtime_checkable
class Reward(Protocol):
    """The members of a reward. Everything before `load` works without weights or a network."""

    @property
    def compares(self) -> bool:
        """Whether the score of an image depends on the other images of its prompt.

        False for most rewards; write `compares: ClassVar[bool] = False`. If it is True, all samples
        of a prompt are brought to one process and scored in one call.
        """

    def accepts(self, prompt: Prompt) -> bool:
        """Return whether the reward can score images of this prompt.

        Prompts that are not accepted are never drawn (docs/adr/0007). Return True if any text will
        do; look at `prompt.text` or `prompt.include` if the reward needs something of the prompt.
        """

    @property
    def weight_bytes(self) -> int:
        """Bytes of the network weights that `load` puts on the device."""

    def load(self, device: torch.device) -> Scorer:
        """Load the weights to the device and return the function that scores images.

        Called once per process. Raises ConfigError, which names the key, the value and the remedy,
        if the weights are missing or damaged.
        """


def rewards_from_parts(**parts: Float[Tensor, " B"]) -> Rewards:
    """Return rewards whose total is the first part; an image with a NaN there has failed.

    The other parts are logged as `reward/<name>` but not trained on.
    """
    name, total = next(iter(parts.items()))
    return Rewards(total=total, parts=parts, weights={name: 1.0}, failed=total.isnan())


def make_rewards(images: Float[Tensor, "B 3 H W"], **parts: Float[Tensor, " B"]) -> Rewards:
    """Return `rewards_from_parts(**parts)` on the device of the images.

    An image with a value that is not finite gets NaN in every part, whatever its scores were,
    because models and 8-bit conversions give ordinary numbers to a broken image.
    """
    broken = ~images.isfinite().flatten(1).all(1)
    return rewards_from_parts(
        **{
            name: part.to(images.device).masked_fill(broken, math.nan)
            for name, part in parts.items()
        }
    )


def concatenate_notes(batches: Sequence[Rewards]) -> tuple[tuple[str, ...], ...]:
    """Join the notes of consecutive parts of a batch; a part without notes counts as silent.

    Returns an empty tuple if no part has notes.
    """
    if not any(batch.notes for batch in batches):
        return ()
    lines: list[tuple[str, ...]] = []
    for batch in batches:
        lines += batch.notes or [()] * len(batch.total)
    return tuple(lines)
