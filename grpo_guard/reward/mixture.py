"""A weighted sum of rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.reward import Reward, Scorer, load_scorer
from grpo_guard.schema import Name, component, require
from grpo_guard.types import Prompt, Rewards


@component
class Mixture:
    """Score images by the weighted sum of several rewards, and keep the parts of each.

    An image that one of them cannot score has no sum, unless the weight of that one is 0. A reward
    of weight 0 is logged but not trained on.
    """

    rewards: Mapping[Name, Reward]
    """The rewards by name."""
    weights: Mapping[str, float]
    """Weight of each reward in the sum, by the same names; not all of them 0."""

    def __post_init__(self) -> None:
        names = sorted(self.rewards)
        weights = dict(self.weights)
        require(bool(names), "rewards={} is empty; name at least one")
        require(
            sorted(weights) == names,
            f"weights={weights} do not fit the rewards; give one each to {names}",
        )
        require(
            any(weights.values()),
            f"weights={weights} are all 0, so nothing is trained on; raise one",
        )

    @property
    def compares(self) -> bool:
        """Whether any of the rewards compares images."""
        return any(reward.compares for reward in self.rewards.values())

    def accepts(self, prompt: Prompt) -> bool:
        """Accept prompts that all of the rewards accept."""
        return all(reward.accepts(prompt) for reward in self.rewards.values())

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights of all rewards."""
        return sum(reward.weight_bytes for reward in self.rewards.values())

    def load(self, device: torch.device) -> Scorer:
        """Load all rewards and return the scorer of their sum."""
        scorers = {
            name: load_scorer(f"rewards.{name}", reward, device)
            for name, reward in self.rewards.items()
        }

        def score(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Rewards:
            scores = {name: scorer(images, prompts) for name, scorer in scorers.items()}
            return combine(scores, self.weights)

        return score


def combine(scores: Mapping[str, Rewards], weights: Mapping[str, float]) -> Rewards:
    """Return `sum_i w_i r_i` with the parts and notes of all rewards.

    The sum is NaN if any r_i with a weight failed. Raises ConfigError if two rewards give parts of
    the same name.
    """
    keys = [key for score in scores.values() for key in score.parts]
    require(
        len(set(keys)) == len(keys),
        f"rewards give parts {keys}, some under the same name; change their `name`",
    )
    counted = {name: score for name, score in scores.items() if weights[name]}
    failed = torch.stack([score.failed for score in counted.values()]).any(0)
    total = torch.stack([weights[name] * score.total for name, score in counted.items()]).sum(0)
    parts: dict[str, Tensor] = {}
    shares: dict[str, float] = {}
    for name, score in scores.items():
        parts |= score.parts
        shares |= {key: weights[name] * weight for key, weight in score.weights.items()}
    return Rewards(
        total=total.masked_fill(failed, math.nan),
        parts=parts,
        weights=shares,
        failed=failed,
        notes=_merge_notes(scores),
    )


def _merge_notes(scores: Mapping[str, Rewards]) -> tuple[tuple[str, ...], ...]:
    """Return the notes of all rewards on each image; every line begins with the reward's name."""
    notes = {name: score.notes for name, score in scores.items() if score.notes}
    merged = []
    for image in zip(*notes.values(), strict=True):
        lines_by_name = zip(notes, image, strict=True)
        merged.append(tuple(f"{name}: {line}" for name, lines in lines_by_name for line in lines))
    return tuple(merged)
