"""How pictures drift, and whether those of a prompt become one."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grpo_guard.metrics import Metrics, dispersion, mean
from grpo_guard.reward.diversity import Diversity
from grpo_guard.reward.statistics import ImageStatistics
from grpo_guard.types import component
from grpo_guard.watch import Look


@component
class Pictures:
    """The plain `statistics` of pictures, and their `diversity` within a group; failed pictures are left out."""

    statistics: ImageStatistics
    diversity: Diversity

    def load(self, device: torch.device) -> Look:
        """The encoder of `diversity`."""
        measured, encode = self.statistics.load(device), self.diversity.encoder(device)

        @torch.no_grad()
        def look(images: Float[Tensor, "B 3 H W"], group: Int[Tensor, " B"]) -> Metrics:
            parts = measured(images, ()).parts
            whole = images.isfinite().flatten(1).all(1)
            spread = dispersion(encode(images)[whole], group.to(images.device)[whole])
            return {f"watch/{name}": mean(part) for name, part in parts.items()} | {
                f"watch/{self.diversity.name}": spread
            }

        return look
