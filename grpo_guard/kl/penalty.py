"""A divergence from the model that training began with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.backbone import Model
from grpo_guard.kl import Penalize
from grpo_guard.rollout import propose
from grpo_guard.types import Condition, Schedule, Step, component, require


@component
class Penalty:
    """beta * distance(policy, reference); the gradient flows through the policy's mean, not through the reference."""

    beta: float
    distance: Callable[[Float[Tensor, " R"], Schedule], Float[Tensor, " R"]]

    def __post_init__(self) -> None:
        require(self.beta > 0, f"beta={self.beta} is not positive; use kl=none for no penalty")

    def load(self, model: Model) -> Penalize:
        """Take the reference from the model as it is now."""
        reference = model.reference()

        def penalize(
            step: Step, steps: Schedule, x: Float[Tensor, "R ..."], condition: Condition
        ) -> Float[Tensor, " R"]:
            with torch.no_grad():
                fixed = propose(reference, steps, x, condition)
            square = (step.mean - fixed.mean).flatten(1).square().mean(1)
            return self.beta * self.distance(square, steps)

        return penalize
