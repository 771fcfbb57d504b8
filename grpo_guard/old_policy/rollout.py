"""The old policy is the one that drew the samples."""

from __future__ import annotations

from typing import ClassVar

from grpo_guard.old_policy import OldMeans
from grpo_guard.schema import component
from grpo_guard.types import Trajectory, Velocity


@component
class RolloutOldPolicy:
    """Use the means that stored latents and regenerated noise imply; it takes nothing more.

    The old mean is x_next - std * eps, so neither memory nor a forward is needed (docs/adr/0014).
    """

    stores_means: ClassVar[bool] = False
    weight_copies: ClassVar[int] = 0

    def extra_forwards(self, updates: int) -> float:
        """Return 0."""
        return 0

    def __call__(self, policy: Velocity, trajectory: Trajectory, microbatch: int) -> OldMeans:
        """Return means that are left to the samples."""
        return OldMeans()
