"""Plain measures of pictures, to see early how they drift: wiped backgrounds, fried colours, grids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.reward import Scorer, scored
from grpo_guard.types import Prompt, Rewards, component, require
from grpo_guard.world.checker import statistics


@component
class ImageStatistics:
    """`dark_fraction`, `edge_density`, `color_entropy`, `saturation` and `grid_energy` at `period` px, all in [0, 1].

    They say nothing of good or bad: look at them, do not train on them.
    """

    period: int

    def __post_init__(self) -> None:
        require(
            self.period > 1,
            f"period={self.period} is no grid; give the px of a pixel pair (2) or of a patch",
        )

    compares: ClassVar[bool] = False

    def accepts(self, prompt: Prompt) -> bool:
        """Prompts play no part."""
        return True

    def load(self, device: torch.device) -> Scorer:
        """The scorer; it works where the images are."""

        def score(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Rewards:
            return scored(images, **statistics(images, period=self.period))

        return score
