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

    A constant group has advantage 0. Groups are prompt instances: two draws of one text are two groups. Several
    rewards are summed first (`weighted_sum`), or each is normalised and then summed by its weight (`per_reward`).
    """

    std: Literal["group", "global", "none"]
    aggregate: Literal["weighted_sum", "per_reward"] = "weighted_sum"
    clamp: float = 5.0

    def __post_init__(self) -> None:
        require(self.clamp > 0, f"clamp={self.clamp} is not positive; the usual bound is 5")

    def __call__(self, rewards: Rewards, group: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Advantages of the samples, 0 where scoring failed."""
        apart = {
            name: (weight, rewards.parts[name])
            for name, weight in rewards.weights.items()
            if weight
        }
        signals = apart if self.aggregate == "per_reward" else {"total": (1.0, rewards.total)}
        found = [
            weight * self._normalised(scores, ~rewards.failed, group)
            for weight, scores in signals.values()
        ]
        return torch.stack(found).sum(0).clamp(-self.clamp, self.clamp).float()

    def _normalised(self, scores: Tensor, kept: Tensor, group: Tensor) -> Tensor:
        """(score - mean of the group) / (std + 1e-4), float64."""
        scores = torch.where(kept, scores, 0).double()
        centred = torch.where(kept, scores - _mean(scores, kept, group), 0)
        return centred / self._scale(scores, kept, group)

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
