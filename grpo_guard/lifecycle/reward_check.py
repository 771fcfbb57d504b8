"""Is a reward in working order? It is shown pictures of which it is known whether they fit their prompts."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.reward import Reward, Scorer
from grpo_guard.types import Clause, Prompt, require
from grpo_guard.world.render import render

KNOWN = (
    (
        Prompt(text="a red circle", include=(Clause(name="circle", color="red"),)),
        Prompt(text="a blue square", include=(Clause(name="square", color="blue"),)),
    ),
    (
        Prompt(text='the word "milk"', include=(Clause(name="word", text="milk"),)),
        Prompt(text='the word "jazz"', include=(Clause(name="word", text="jazz"),)),
    ),
)
_NOTICEABLE = (
    0.02  # of what another picture changes, the least that another prompt does where it is read
)


def check(reward: Reward, score: Scorer) -> None:
    """Raise ConfigError where a loaded reward is not finite, tells no pictures apart or prefers the wrong one.

    Every part of the total is looked at. Each prompt comes with both of its pictures, as some rewards compare them. One
    that does not read the prompt may prefer what it likes, and a reward that accepts none of the known prompts is left
    untested.
    """
    pairs = [pair for pair in KNOWN if all(map(reward.accepts, pair))]
    if pairs:
        asked, others = ([pair[i] for pair in pairs] for i in (0, 1))
        right, wrong = _pictures(asked), _pictures(others)
        seen = score(torch.cat([right, wrong, right, wrong]), asked + asked + others + others)
        for name in seen.weights:
            _judge(name, seen.parts[name].view(4, -1), asked)


def _judge(name: str, scores: Float[Tensor, "4 N"], asked: list[Prompt]) -> None:
    """Judge one part by its scores of right pictures and of wrong ones, and of both under the wrong prompt."""
    right, wrong, misread, _ = scores
    reads = bool(((right - misread).abs() > _NOTICEABLE * (right - wrong).abs()).any())
    remedy = f"the part {name} is not in working order; load the published weights, or set selftest=false"
    require(
        bool(scores.isfinite().all()),
        f"reward gives {scores.flatten().tolist()} to known pictures: {remedy}",
    )
    require(
        bool((right != wrong).any()),
        f"reward gives {right[0]:.4g} to known pictures, right or wrong: {remedy}",
    )
    for prompt, fits, other in zip(asked, right.tolist(), wrong.tolist(), strict=True):
        said = f"reward gives {fits:.4g} to a picture of {prompt.text!r} but {other:.4g} to another"
        require(fits > other or not reads, f"{said}: {remedy}")


def _pictures(prompts: list[Prompt]) -> Float[Tensor, "N 3 H W"]:
    return (
        torch.from_numpy(render(prompts, np.random.default_rng(0))).permute(0, 3, 1, 2).float()
        / 255
    )
