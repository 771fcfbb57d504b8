"""The schedule's own steps to the end."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from grpo_guard.types import Condition, Schedule, Velocity, component


@component
class Euler:
    """Everything is walked; nothing is left to finish."""

    def walked(self, schedule: Schedule) -> Schedule:
        """The whole schedule."""
        return schedule

    def finish(
        self,
        policy: Velocity,
        x: Float[Tensor, "B ..."],
        t: Float[Tensor, ""],
        condition: Condition,
    ) -> Float[Tensor, "B ..."]:
        """The latents as they are."""
        return x
