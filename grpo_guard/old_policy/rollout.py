"""The old policy is the one that sampled."""

from __future__ import annotations

from grpo_guard.types import Rows, Trajectory, Velocity, component


@component
class Rollout:
    """Old means are implied by the stored latents and regenerated noise: no memory, no forward."""

    def __call__(
        self, policy: Velocity, trajectory: Trajectory, rows: Rows, microbatch: int
    ) -> Rows:
        """The rows as they are."""
        return rows
