"""Group-relative advantages."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from grpo_guard.types import Rewards, component, require


@component
class Group:
    """(reward - mean of the group) / (std + 1e-4), clamped; the std is that of the group, of all samples, or 1.

    A constant group has advantage 0. Groups are prompt instances: two draws of one text are two groups.
    """

    std: Literal["group", "global", "none"]
    clamp: float = 5.0

    def __post_init__(self) -> None:
        require(self.clamp > 0, f"clamp={self.clamp} is not positive; the usual bound is 5")

    def __call__(self, rewards: Rewards, group: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Advantages of the samples, 0 where scoring failed."""
        kept = ~rewards.failed
        total = torch.where(kept, rewards.total, 0).double()
        centred = torch.where(kept, total - _mean(total, kept, group), 0)
        return (centred / self._scale(total, kept, group)).clamp(-self.clamp, self.clamp).float()

    def _scale(self, total: Tensor, kept: Tensor, group: Tensor) -> Tensor:
        """The divisor of each sample's centred reward."""
        if self.std == "none":
            return torch.ones_like(total)
        cohort = group if self.std == "group" else torch.zeros_like(group)
        return _mean((total - _mean(total, kept, cohort)).square(), kept, cohort).sqrt() + 1e-4


def _mean(values: Tensor, kept: Tensor, group: Tensor) -> Tensor:
    """The mean over the kept members of each sample's group, given back to every member."""
    zeros = torch.zeros(int(group.max()) + 1, dtype=values.dtype, device=values.device)
    total = zeros.index_add(0, group, values * kept)
    count = zeros.index_add(0, group, kept.to(values.dtype))
    return (total / count.clamp(min=1))[group]
