"""The old policy: the one that drew the samples, with which ratios compare the new one."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from grpo_guard.types import Rows, Trajectory, Velocity


@runtime_checkable
class OldPolicy(Protocol):
    """Provides the old policy's mean of each training row."""

    @property
    def extra_forwards(self) -> int:
        """Forwards without gradients that each training row takes, on top of the update's own."""

    @property
    def stores_means(self) -> bool:
        """Whether a mean, as large as a latent, is kept for each training row."""

    def __call__(
        self, policy: Velocity, trajectory: Trajectory, rows: Rows, microbatch: int
    ) -> Rows:
        """Return the rows of an update, with `old_mean` if means are stored.

        Call it before the first update, while the policy is still the old one. The policy computes
        `microbatch` rows at a time.
        """
