"""Takes a trajectory from its last trained step to the image."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from grpo_guard.types import Condition, Schedule, Velocity


@runtime_checkable
class FinalSteps(Protocol):
    """Decides which steps a rollout takes one by one, and how it gets from there to t = 0."""

    def stored_steps(self, schedule: Schedule) -> Schedule:
        """Return the steps that the rollout takes one by one and whose latents it stores."""

    def finish(
        self,
        policy: Velocity,
        x: Float[Tensor, "B ..."],
        t: Float[Tensor, ""],
        condition: Condition,
    ) -> Float[Tensor, "B ..."]:
        """Return the latents at t = 0, from the latents `x` at time `t`."""
