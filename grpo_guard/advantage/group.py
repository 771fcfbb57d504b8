"""Group-relative advantages, as in GRPO (arXiv:2402.03300)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from grpo_guard.schema import Advice, Positive, component
from grpo_guard.types import Rewards

_EPSILON = 1e-4
"""Added to every standard deviation, so that a constant group has advantage 0.

The value is Flow-GRPO's.
"""


@component
class Group:
    """Compute (reward - mean of the group) / (standard deviation + 1e-4), clamped.

    A group holds the samples of one drawn prompt; if a text is drawn twice, it has two groups. A
    group whose rewards are all equal has advantage 0.
    """

    std: Literal["group", "global", "none"]
    """Standard deviation to divide by: that of the group, that of all samples, or none."""
    aggregate: Literal["weighted_sum", "per_reward"] = "weighted_sum"
    """How several rewards are combined.

    weighted_sum adds them by weight and then normalises the sum; per_reward normalises each one and
    then adds them by weight.
    """
    clamp: Annotated[Positive, Advice("the usual bound is 5")] = 5.0
    """Largest absolute advantage, above 0."""

    def __call__(self, rewards: Rewards, group: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return the advantages of the samples; 0 for those that could not be scored."""
        signals = {"total": (1.0, rewards.total)}
        if self.aggregate == "per_reward":
            signals = {
                name: (weight, rewards.parts[name])
                for name, weight in rewards.weights.items()
                if weight
            }
        advantages = [
            weight * self._normalize(scores, ~rewards.failed, group)
            for weight, scores in signals.values()
        ]
        return torch.stack(advantages).sum(0).clamp(-self.clamp, self.clamp).float()

    def _normalize(
        self, scores: Float[Tensor, " B"], kept: Bool[Tensor, " B"], group: Int[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        """Return (score - mean of the group) / (standard deviation + 1e-4) in float64."""
        # Sums of float32 are exact in float64, so equal scores have advantages of exactly 0.
        scores = torch.where(kept, scores, 0).float().double()
        centred = torch.where(kept, scores - _mean(scores, kept, group), 0)
        if self.std == "none":
            return centred
        cohort = group if self.std == "group" else torch.zeros_like(group)
        variance = _mean((scores - _mean(scores, kept, cohort)).square(), kept, cohort)
        return centred / (variance.sqrt() + _EPSILON)


def _mean(
    values: Float[Tensor, " B"], kept: Bool[Tensor, " B"], group: Int[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Return, for each sample, the mean over the kept members of its group."""
    zeros = torch.zeros(int(group.max()) + 1, dtype=values.dtype, device=values.device)
    total = zeros.index_add(0, group, values * kept)
    count = zeros.index_add(0, group, kept.to(values.dtype))
    return (total / count.clamp(min=1))[group]
