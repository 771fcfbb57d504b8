"""A self-test of the reward: does it prefer the right ones of known pictures?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.reward import Reward, Scorer
from grpo_guard.schema import require
from grpo_guard.types import Clause, Prompt
from grpo_guard.world.render import render

PAIRS = (
    (
        Prompt(text="a red circle", include=(Clause(name="circle", color="red"),)),
        Prompt(text="a blue square", include=(Clause(name="square", color="blue"),)),
    ),
    (
        Prompt(text='the word "milk"', include=(Clause(name="word", text="milk"),)),
        Prompt(text='the word "jazz"', include=(Clause(name="word", text="jazz"),)),
    ),
)
"""Pairs of prompts: a picture of one does not fit the other."""

_NOTICEABLE = 0.02
"""A reward reads its prompt if another prompt changes a score by this share of what another
picture changes."""


def check_reward(reward: Reward, score: Scorer) -> None:
    """Raise ConfigError if a loaded reward is out of order.

    It is if a part of its total is not finite, is the same for all pictures, or is higher for the
    wrong picture. A reward that does not read the prompt may prefer what it likes. A part of weight
    0 is not trained on, and is not tested. Neither is a reward that accepts none of the known
    prompts.
    """
    pairs = [pair for pair in PAIRS if all(map(reward.accepts, pair))]
    if not pairs:
        return
    prompts = [prompt for prompt, _ in pairs]
    others = [other for _, other in pairs]
    right = _draw(prompts)
    wrong = _draw(others)
    # Each prompt comes with both of its pictures, because some rewards compare the pictures.
    images = torch.cat([right, wrong, right, wrong])
    rewards = score(images, prompts + prompts + others + others)
    for name, weight in rewards.weights.items():
        if weight:
            _check_part(name, rewards.parts[name].view(4, -1), prompts)


def _check_part(name: str, scores: Float[Tensor, "4 N"], prompts: Sequence[Prompt]) -> None:
    """Check one part: rows are right pictures, wrong ones, and both under the other prompt."""
    right, wrong, right_misread, _ = scores
    effect_of_prompt = (right - right_misread).abs()
    reads_prompt = bool((effect_of_prompt > _NOTICEABLE * (right - wrong).abs()).any())
    remedy = f"the part {name} is out of order; load the published weights, or set selftest=false"
    require(
        bool(scores.isfinite().all()),
        f"reward gives {scores.flatten().tolist()} to known pictures: {remedy}",
    )
    require(
        bool((right != wrong).any()),
        f"reward gives {right[0]:.4g} to known pictures, right or wrong: {remedy}",
    )
    for prompt, fitting, other in zip(prompts, right.tolist(), wrong.tolist(), strict=True):
        require(
            fitting > other or not reads_prompt,
            f"reward gives {fitting:.4g} to a picture of {prompt.text!r} but {other:.4g} to"
            f" another: {remedy}",
        )


def _draw(prompts: Sequence[Prompt]) -> Float[Tensor, "N 3 H W"]:
    """Draw a picture of each prompt, in [0, 1]."""
    pictures = render(list(prompts), np.random.default_rng(0))
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
