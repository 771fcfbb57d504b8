"""What a ratio compares with: the policy that made the samples."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from grpo_guard.types import Rows, Trajectory, Velocity


@runtime_checkable
class OldPolicy(Protocol):
    """Where the old policy's means come from."""

    def __call__(
        self, policy: Velocity, trajectory: Trajectory, rows: Rows, microbatch: int
    ) -> Rows:
        """The rows of an update, before anything is updated; with `old_mean` where it is to be kept."""
