"""A penalty on the distance from the model that training began with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.backbone import Model
from grpo_guard.kl import Penalize
from grpo_guard.rollout import replay_steps
from grpo_guard.schema import Advice, Positive, component
from grpo_guard.types import Rows, Schedule, Step, Trajectory, Velocity


@component
class Penalty:
    """Add `beta` times a distance between the steps of the policy and of the reference.

    The gradient flows through the policy's mean only; the reference is fixed.
    """

    beta: Annotated[Positive, Advice("use kl=none for no penalty")]
    """Weight of the penalty in the loss, greater than 0; published values are 0.01 to 0.04."""
    distance: Callable[[Float[Tensor, " R"], Schedule], Float[Tensor, " R"]]
    """The distance: a function of `grpo_guard.kl.distance`."""
    reference_forwards: ClassVar[int] = 1

    def load(self, model: Model) -> Penalize:
        """Take the model as it is now for the reference, and return the penalty."""
        return _FromReference(self, model.reference())


class _FromReference:
    """The penalty on the distance from one reference."""

    def __init__(self, recipe: Penalty, reference: Velocity) -> None:
        self.recipe = recipe
        self.reference = reference

    def __call__(self, step: Step, trajectory: Trajectory, rows: Rows) -> Float[Tensor, " R"]:
        with torch.no_grad():
            reference_step = replay_steps(self.reference, trajectory, rows)
        square = (step.mean - reference_step.mean).flatten(1).square().mean(1)
        return self.recipe.beta * self.recipe.distance(square, trajectory.schedule[rows.step])
