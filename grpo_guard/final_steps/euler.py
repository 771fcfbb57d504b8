"""Takes all steps of the schedule."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from grpo_guard.schema import component
from grpo_guard.types import Condition, Schedule, Velocity


@component
class Euler:
    """Take every step of the schedule, so that nothing is left to finish."""

    def stored_steps(self, schedule: Schedule) -> Schedule:
        """Return the whole schedule."""
        return schedule

    def finish(
        self,
        policy: Velocity,
        x: Float[Tensor, "B ..."],
        t: Float[Tensor, ""],
        condition: Condition,
    ) -> Float[Tensor, "B ..."]:
        """Return the latents unchanged: t is already 0."""
        return x
