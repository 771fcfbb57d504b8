"""Several rewards at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.reward import Reward, Scorer
from grpo_guard.types import Prompt, Rewards, component, require


@component
class Mixture:
    """The weighted sum of rewards, whose parts stay apart; one that fails on an image fails the sum.

    One of weight 0 is only looked at: its failures are counted, and spare the sum.
    """

    rewards: Mapping[str, Reward]
    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        names, weights = sorted(self.rewards), dict(self.weights)
        require(bool(names), "rewards={} is empty; name at least one")
        require(
            sorted(weights) == names,
            f"weights={weights} do not fit the rewards; give one each to {names}",
        )
        require(
            all(map(math.isfinite, weights.values())),
            f"weights={weights} are not all finite; give numbers",
        )
        require(
            any(weights.values()),
            f"weights={weights} are all 0, so nothing is trained on; raise one",
        )

    @property
    def compares(self) -> bool:
        """Whether any of them does."""
        return any(reward.compares for reward in self.rewards.values())

    def accepts(self, prompt: Prompt) -> bool:
        """Prompts that all of them accept."""
        return all(reward.accepts(prompt) for reward in self.rewards.values())

    def load(self, device: torch.device) -> Scorer:
        """Load all of them."""
        scorers = {name: reward.load(device) for name, reward in self.rewards.items()}

        def score(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Rewards:
            return combine(
                {name: scorer(images, prompts) for name, scorer in scorers.items()}, self.weights
            )

        return score


def combine(scores: Mapping[str, Rewards], weights: Mapping[str, float]) -> Rewards:
    """`sum_i w_i r_i`, NaN where any r_i of a weight failed, with the parts of all."""
    counted = {name: score for name, score in scores.items() if weights[name]}
    failed = torch.stack([score.failed for score in counted.values()]).any(0)
    total = torch.stack([weights[name] * score.total for name, score in counted.items()]).sum(0)
    keys = [key for score in scores.values() for key in score.parts]
    require(
        len(set(keys)) == len(keys),
        f"rewards give parts {keys}, some of one name; set their `name` apart",
    )
    parts = {key: part for score in scores.values() for key, part in score.parts.items()}
    shares = {
        key: weights[name] * w for name, score in scores.items() for key, w in score.weights.items()
    }
    total = total.masked_fill(failed, math.nan)
    return Rewards(total=total, parts=parts, weights=shares, failed=failed, notes=_notes(scores))


def _notes(scores: Mapping[str, Rewards]) -> tuple[tuple[str, ...], ...]:
    """Those of all, each line after its reward's name."""
    told = {name: score.notes for name, score in scores.items() if score.notes}
    return tuple(
        tuple(f"{name}: {line}" for name, lines in zip(told, row, strict=True) for line in lines)
        for row in zip(*told.values(), strict=True)
    )
