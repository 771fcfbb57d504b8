"""The exact checker of the synthetic world as a reward; evaluations use it as a gold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.reward import Scorer, make_rewards
from grpo_guard.schema import component
from grpo_guard.types import Prompt, Rewards
from grpo_guard.world.checker import check_pictures


@component
class WorldChecker:
    """Score what an image of the synthetic world shows; all three parts are in [0, 1].

    `meanings` says what they are; `exact` is the total. Notes say what is wrong, such as "no red
    circle".
    """

    meanings: ClassVar[Mapping[str, str]] = {
        "exact": "1 if the picture shows all that its prompt asks for and nothing else, else 0",
        "facts": "share of what the prompt says (numbers, colours, words, places) that is right",
        "clean": "how close the pixels are to the plain colours of the world; 1 has no smudges",
    }
    compares: ClassVar[bool] = False

    def accepts(self, prompt: Prompt) -> bool:
        """Accept prompts that list what the image must show."""
        return bool(prompt.include)

    weight_bytes: ClassVar[int] = 0
    """Always 0: there are no weights."""

    def load(self, device: torch.device) -> Scorer:
        """Return the scorer; it has no weights and computes on the CPU."""
        return _score


def _score(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Rewards:
    verdict = check_pictures(images, prompts)
    parts = make_rewards(images, exact=verdict.exact, facts=verdict.facts, clean=verdict.clean)
    return replace(parts, notes=verdict.wrong)
