"""The synthetic world's gold: what its exact checker says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.reward import Scorer, scored
from grpo_guard.types import Prompt, Rewards, component
from grpo_guard.world.checker import check


@component
class WorldChecker:
    """`exact` (the total): all facts hold and nothing else is there; `facts`: share that hold; `clean`: no smudges."""

    compares: ClassVar[bool] = False

    def accepts(self, prompt: Prompt) -> bool:
        """Prompts that say what must be there."""
        return bool(prompt.include)

    def load(self, device: torch.device) -> Scorer:
        """The scorer; it works on the CPU."""
        return _score


def _score(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Rewards:
    verdict = check(images, prompts)
    return scored(images, exact=verdict.exact, facts=verdict.facts, clean=verdict.clean)
