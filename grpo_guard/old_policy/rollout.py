"""The old policy is the one that drew the samples."""

from __future__ import annotations

from typing import ClassVar

from grpo_guard.schema import component
from grpo_guard.types import Rows, Trajectory, Velocity


@component
class RolloutOldPolicy:
    """Use the means that stored latents and regenerated noise imply; it takes nothing more.

    The old mean is x_next - std * eps, so neither memory nor a forward is needed (docs/adr/0014).
    """

    extra_forwards: ClassVar[int] = 0
    stores_means: ClassVar[bool] = False

    def __call__(
        self, policy: Velocity, trajectory: Trajectory, rows: Rows, microbatch: int
    ) -> Rows:
        """Return the rows unchanged."""
        return rows
