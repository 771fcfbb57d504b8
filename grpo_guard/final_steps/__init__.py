"""How a trajectory is finished once no step of it is trained any more."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from grpo_guard.types import Condition, Schedule, Velocity


@runtime_checkable
class FinalSteps(Protocol):
    """Takes a trajectory from the end of what is walked step by step to t = 0."""

    def walked(self, schedule: Schedule) -> Schedule:
        """The steps that are walked one by one, and stored."""

    def finish(
        self,
        policy: Velocity,
        x: Float[Tensor, "B ..."],
        t: Float[Tensor, ""],
        condition: Condition,
    ) -> Float[Tensor, "B ..."]:
        """The latents at t = 0, from those at time t."""
